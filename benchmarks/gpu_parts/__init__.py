"""The parts of `benchmarks/gpu.py`: each module has `run(setup, log)` and runs in a process of its own."""
