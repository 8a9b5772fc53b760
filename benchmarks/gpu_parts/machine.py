"""The machine: versions, bandwidth of copies, matrix products, transfers of a ResNet-18's vector."""

import os
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.gpu_parts.engines import synchronize
from benchmarks.gpu_parts.log import Log
from benchmarks.gpu_parts.setup import Setup
from rayfl.training.precision import local_arithmetic
from rayfl.training.process import configure_process

VECTOR = 11_181_642  # parameters of ResNet-18, 45 MB


def run(setup: Setup, log: Log) -> None:
    configure_process(threads=1)
    log.note(
        "python, torch, numpy",
        f"{platform.python_version()}, {torch.__version__}, {np.__version__}",
    )
    log.note("cores", os.cpu_count())
    if setup.device == "cuda":
        log.note("GPU", torch.cuda.get_device_name())
        capability, cudnn = torch.cuda.get_device_capability(), torch.backends.cudnn.version()
        log.note("compute capability, CUDA, cuDNN", f"{capability}, {torch.version.cuda}, {cudnn}")
    else:
        log.note("GPU", "none: a rehearsal; the numbers say nothing")
    _copies(setup, log)
    _transfers(setup, log)
    size = 256 if setup.small else 4096
    a, b = (torch.randn(size, size, device=setup.device) for _ in range(2))
    for precision in ("float32", "tf32"):
        with local_arithmetic(precision):
            seconds = _timed(setup.device, lambda: a @ b, 10)
        log.value(f"matrix product, {precision}", 2 * size**3 / seconds / 1e12, "TFLOP/s")


def _copies(setup: Setup, log: Log) -> None:
    for name, n in (("1 GB", 1 << (20 if setup.small else 28)), ("45 MB", VECTOR)):
        a = torch.ones(n, device=setup.device)
        b = torch.empty_like(a)
        seconds = _timed(setup.device, lambda b=b, a=a: b.copy_(a), 3 if setup.small else 20)
        log.value(f"copy of {name}, read and written", 8 * n / seconds / 1e9, "GB/s")


def _transfers(setup: Setup, log: Log) -> None:
    if setup.device != "cuda":
        log.note("transfers", "left out: there is no GPU")
        return
    there, pageable = torch.ones(VECTOR, device="cuda"), torch.ones(VECTOR)
    pinned = pageable.pin_memory()
    for name, here in (("pageable", pageable), ("pinned", pinned)):
        down = _timed("cuda", lambda here=here: there.copy_(here, non_blocking=True), 5)
        up = _timed("cuda", lambda here=here: here.copy_(there, non_blocking=True), 5)
        log.value(f"45 MB to the GPU, {name}", 1e3 * down, "ms")
        log.value(f"45 MB from the GPU, {name}", 1e3 * up, "ms")


def _timed(device: str, work: Callable[[], object], times: int) -> float:
    """Seconds of one call."""
    work()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - began) / times
