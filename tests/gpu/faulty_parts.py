"""Parts of a GPU benchmark that go wrong: `python faulty_parts.py ARGUMENTS of benchmarks/gpu.py`."""

import os
import signal
import sys
import time

from benchmarks.gpu import main
from benchmarks.gpu_parts.plan import Part

WAYS = ("fine", "hangs", "crashes", "raises", "checks", "last")
PARTS = [
    Part(way, "faulty_parts", 2, needs_data=False, argument="", least=1)  # limit of a GPU
    for way in WAYS
]


def run(setup, log):
    log.value("begun", 1.0, "s", limit=0.5)
    assert sys.modules["ray"] is None  # an import of it would fail
    assert sys.modules["mlflow"] is None
    if log.part == "hangs":
        time.sleep(600)
    if log.part == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if log.part == "raises":
        raise ValueError("one line that says why")
    if log.part == "checks":
        log.check("what must hold", False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], PARTS))
