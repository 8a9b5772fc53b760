"""Run one part: `python -m benchmarks.gpu_parts MODULE ray|alone`, and an order as JSON on standard input.

It imports what the part needs, which takes some ten seconds, says "ready", and begins when the order comes:
the imports of a part go on while the part before it measures.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from pathlib import Path


def main(module: str, ray: str) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing outlives the driver
    sys.modules["mlflow"] = None  # pyright: ignore - an import of it fails
    if ray == "alone":
        sys.modules["ray"] = None  # pyright: ignore
        # Both are read when the first CUDA context is made.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from benchmarks.gpu_parts.log import Log
    from benchmarks.gpu_parts.setup import Setup

    run = importlib.import_module(module).run
    gc.freeze()  # else each collection, after which a GPU's memory is free, walks through all modules
    print("ready", flush=True)
    os.dup2(2, 1)  # nobody reads the pipe any more
    if not (line := sys.stdin.readline()):
        return
    order = json.loads(line)
    title = order.pop("title")
    setup = Setup(**order | {"out": Path(order["out"])})
    run(setup, Log(setup.out, title, targets=not setup.small))


if __name__ == "__main__":
    main(*sys.argv[1:])
