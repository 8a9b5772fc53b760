"""Benchmarks of time and memory: `python -m benchmarks` in the repository runs all of them."""
