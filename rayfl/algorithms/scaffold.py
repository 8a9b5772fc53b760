"""SCAFFOLD: control variates that remove client drift.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
arXiv:1910.06378, Algorithm 1, option II.
Legend: c, c_i = control variates of the server and of client i. Over all N clients, seen or not,
mean(c_i) = c after every round.
Deviation: c_i is computed from the executed update, so weight decay and clipping are absorbed in it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class Scaffold(Algorithm):
    paper: ClassVar[str] = "Karimireddy et al., ICML 2020, arXiv:1910.06378"

    def init_server(self, w):
        return {"c": torch.zeros_like(w)}

    def init_client(self, w):
        return {"c_i": torch.zeros_like(w)}

    def broadcast(self, w, server):
        return w, {"c": server["c"]}

    def local_step(self, x, memory, grad, ctx):
        return grad(x).add_(ctx.shared["c"] - memory["c_i"]), memory

    def upload(self, delta, memory, ctx):
        change = -ctx.shared["c"] - delta / (ctx.steps * ctx.lr)  # c_i+ - c_i
        return {"delta": delta, "c_change": change}, {"c_i": memory["c_i"] + change}

    def server_step(self, w, server, mean, ctx):
        c = server["c"] + ctx.participation * mean["c_change"]
        return super().server_step(w, server, mean, ctx)[0], {"c": c}
