"""Benchmarks: each is `python -m benchmarks.<name>` upon the one harness and leaves `benchmarks/results/<name>.json`."""
