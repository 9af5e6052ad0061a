"""Text and image towers by name or path: what turns a plot into a vector and a poster into a vector."""
