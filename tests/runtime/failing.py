"""Algorithms and a model that go wrong, for the tests of what happens then."""

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from rayfl.algorithms import Algorithm


def in_a_run() -> bool:
    """Return True while a client trains or a server aggregates: the check before a run sees no failure."""
    frame = sys._getframe()
    while frame is not None:
        if Path(frame.f_code.co_filename).name in ("engine.py", "server.py"):
            return True
        frame = frame.f_back
    return False


def first(marker: str) -> bool:
    """Return True to the first process that asks for this marker, however many ask at once."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class RaisesInRoundTwo(Algorithm):
    """Raises in every client's first local step once the server has aggregated."""

    def init_server(self, w):
        return {"round": w[:1] * 0 + 1}

    def broadcast(self, w, server):
        return w, {"round": server["round"]}

    def local_step(self, x, memory, grad, ctx):
        if ctx.shared["round"].item() == 2 and in_a_run():
            raise ZeroDivisionError("momentum of nothing")
        return grad(x), memory

    def server_step(self, w, server, mean, ctx):
        return w + mean["delta"], {"round": server["round"] + 1}


@dataclass(frozen=True, kw_only=True)
class Explodes(Algorithm):
    """Steps so far that the loss is not finite."""

    def local_step(self, x, memory, grad, ctx):
        return grad(x) * (1e30 if in_a_run() else 1.0), memory


@dataclass(frozen=True, kw_only=True)
class EndsOn(Algorithm):
    """After `round` rounds the server holds `value`, in its state or in every parameter."""

    round: int = 3
    value: str = "nan"  # a config holds finite numbers alone
    where: str = "m"

    def init_server(self, w):
        return {"m": w * 0, "round": w[:1] * 0}

    def server_step(self, w, server, mean, ctx):
        w, m, round = w + mean["delta"], server["m"], server["round"] + 1
        if round.item() == self.round and in_a_run():
            value = float(self.value)
            m, w = (m + value, w) if self.where == "m" else (m, w * 0 + value)
        return w, {"m": m, "round": round}


@dataclass(frozen=True, kw_only=True)
class RenamesItsMemory(Algorithm):
    """Returns a memory of another name than it started with."""

    def init_client(self, w):
        return {"c_i": w * 0}

    def upload(self, delta, memory, ctx):
        return {"delta": delta}, {"c": memory["c_i"]}


@dataclass(frozen=True, kw_only=True)
class Dies(Algorithm):
    """Takes its process with it."""

    def local_step(self, x, memory, grad, ctx):
        if in_a_run():
            os.kill(os.getpid(), signal.SIGKILL)
        return grad(x), memory


@dataclass(frozen=True, kw_only=True)
class HangsOnce(Algorithm):
    """Never comes back from the first local step that finds no file `marker`."""

    marker: str

    def local_step(self, x, memory, grad, ctx):
        if in_a_run() and first(self.marker):
            time.sleep(10_000)
        return grad(x), memory


@dataclass(frozen=True, kw_only=True)
class FillsMemoryOnce(Algorithm):
    """Takes ever more memory, up to 6 GB, in the first local step that finds no file `marker`."""

    marker: str
    group: str | None = None
    """Directory of a cgroup that the process joins before."""

    def local_step(self, x, memory, grad, ctx):
        if in_a_run() and first(self.marker):
            if self.group is not None:
                Path(self.group, "cgroup.procs").write_text(str(os.getpid()))
            taken = []
            while len(taken) < 600:
                taken.append(np.ones(10**7, np.uint8))
                time.sleep(0.002)
            time.sleep(10_000)
        return grad(x), memory


class MortalWhenEvaluated(nn.Sequential):
    """A small network that takes its process with it when it evaluates and finds a file `armed`."""

    def __init__(self, num_classes, armed):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
        self.armed = armed

    def forward(self, input):
        if not self.training:
            with contextlib.suppress(FileNotFoundError):
                Path(self.armed).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(input)
