"""How fast rayfl is, and what it takes: `python -m benchmarks` in the repository runs all of it."""
