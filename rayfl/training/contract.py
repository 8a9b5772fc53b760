"""Check a method of one's own against the rules of `algorithms/base.py` before any actor starts.

The method runs for a few rounds in the real local loop, with a small stack of clients, and each call of its
functions is watched: what it was given must stay as it was, a second call must give the same bits, and a
client of the stack must get what it gets alone. Else results would depend on where clients run and on who
runs beside them, without a word.

Shapes: C clients of the stack, P parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rayfl.algorithms.base import (
    Algorithm,
    ExperimentInfo,
    ServerContext,
    TensorInfo,
)
from rayfl.errors import ConfigError
from rayfl.training.local import SGD, LocalStep, Training
from rayfl.training.quadratics import Quadratics
from rayfl.training.watched import SAMPLES, STEPS, Watched
from rayfl.training.watching import Broken, Watch

# In the first one memories and server state may be zero, and a server may act from a later one only.
ROUNDS = 4
# With larger ones plain steps on the quadratics, of curvatures up to 1, may go to infinity.
LARGEST_LR = 1.0
MOST_PARAMETERS = 4_000  # larger models are checked as a shorter vector of as many tensors


def check(
    algorithm: Algorithm,
    name: str,
    info: ExperimentInfo,
    participation: float,
    lrs: Sequence[float],
) -> None:
    """ConfigError for the first rule that the method breaks; `lrs` has the rounds' learning rates."""
    # Unlike each other: else a method could take one client's number for all.
    sizes = np.asarray(info.samples)
    info = replace(info, samples=sizes + np.arange(len(sizes)) % 3)
    shorter = _shorter(info)
    rates = [min(lr, LARGEST_LR) for lr in [*lrs, *[lrs[-1]] * ROUNDS][:ROUNDS]]

    def broken(info: ExperimentInfo, dtype: torch.dtype) -> Broken | None:
        try:
            _train(algorithm, info, participation, rates, dtype)
        except Broken as found:
            return found
        return None

    found = broken(shorter, torch.float32)
    if found is not None and found.doubt == "size" and shorter is not info:
        found = broken(info, torch.float32)
    elif found is not None and found.doubt == "rounding" and not broken(shorter, torch.float64):
        return
    if found is not None:
        raise ConfigError(f"{found}", key="algorithm.name", value=name) from found


def _shorter(info: ExperimentInfo) -> ExperimentInfo:
    """Return as many tensors with about `MOST_PARAMETERS` in all, or `info` itself if it has no more."""
    size = sum(t.size for t in info.tensors)
    if size <= MOST_PARAMETERS:
        return info
    tensors: list[TensorInfo] = []
    offset = 0
    for t in info.tensors:
        tensors.append(
            TensorInfo(t.name, _shrunk(t.shape, t.size * MOST_PARAMETERS // size), offset)
        )
        offset += tensors[-1].size
    return replace(info, tensors=tuple(tensors))


def _shrunk(shape: torch.Size, most: int) -> torch.Size:
    """A shape of as many dimensions with at most so many entries, or one."""
    dims = list(shape)
    while math.prod(dims) > max(1, most):
        longest = dims.index(max(dims))
        dims[longest] = (dims[longest] + 1) // 2
    return torch.Size(dims)


@torch.no_grad()
def _train(
    algorithm: Algorithm,
    info: ExperimentInfo,
    participation: float,
    lrs: list[float],
    dtype: torch.dtype,
) -> None:
    """A round for each learning rate; raises `Broken`."""
    problem = Quadratics(sum(t.size for t in info.tensors), len(STEPS), dtype)
    method = Watched(method=algorithm, oracle=problem, watch=Watch(algorithm))
    w, memory = problem.point(), {}
    server = method.init_server(w)
    for round, lr in enumerate(lrs, 1):
        start, shared = method.broadcast(w, server)
        first = method.init_client(start)
        memory = memory or {name: torch.stack([v] * len(STEPS)) for name, v in first.items()}
        step = LocalStep(method, problem, SGD(lr=lr, weight_decay=0.0, clip_norm=None), info)
        method.batches[:] = [problem.batch() for _ in range(max(STEPS))]
        trained = Training(
            *(step, method.batches.__getitem__, start, shared, memory, [*STEPS]),
            round=round,
            samples=SAMPLES,
        ).run()
        method.must_keep("upload", "memory", trained.memory, memory, "init_client")
        memory = trained.memory
        method.upload_bytes(trained.uploads, info)
        mean = {name: value.sum(0) / len(STEPS) for name, value in trained.uploads.items()}
        if (momentum := method.global_momentum(server)) is not None:
            method.watch.must_be("global_momentum", "momentum", momentum, "w", w)
        ctx = ServerContext(lr, sum(STEPS) / len(STEPS), participation, round)
        w, server = method.server_step(w, server, mean, ctx)
