"""Reading, making, partitioning and caching data."""
