"""Algorithms that go wrong, for the tests of what happens then."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from rayfl.algorithms import Algorithm


@dataclass(frozen=True, kw_only=True)
class RaisesInRoundTwo(Algorithm):
    """Raises in every client's first local step once the server has aggregated."""

    def init_server(self, w):
        return {"round": w[:1] * 0 + 1}

    def broadcast(self, w, server):
        return w, {"round": server["round"]}

    def local_step(self, x, memory, grad, ctx):
        if ctx.shared["round"].item() == 2:
            raise ZeroDivisionError("momentum of nothing")
        return grad(x), memory

    def server_step(self, w, server, mean, ctx):
        return w + mean["delta"], {"round": server["round"] + 1}


@dataclass(frozen=True, kw_only=True)
class Explodes(Algorithm):
    """Steps so far that the loss is not finite."""

    def local_step(self, x, memory, grad, ctx):
        return grad(x) * 1e30, memory


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
        os.kill(os.getpid(), signal.SIGKILL)
        return grad(x), memory


@dataclass(frozen=True, kw_only=True)
class HangsOnce(Algorithm):
    """Never comes back from the first local step that finds no file `marker`."""

    marker: str

    def local_step(self, x, memory, grad, ctx):
        if not Path(self.marker).exists():
            Path(self.marker).touch()
            time.sleep(10_000)
        return grad(x), memory
