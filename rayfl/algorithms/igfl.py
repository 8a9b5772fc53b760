"""IGFL: clients step along the last global gradient, with their own part of it renewed.

A baseline in the code released with "FedNSAM: Consistency of Local and Global Flatness for Federated
Learning", 2026, arXiv:2602.23827, which these formulas follow: the paper that IGFL comes from is named
nowhere there.

Legend (gradient convention: these point uphill):
    c      mean of g_i over the last cohort, 0 before the first round
    c_i    g_i = -D_i / (K_i lr) of client i's last cohort, 0 before its first one
    gamma  weight of the global gradient
Client:  d = (1 - gamma) g + gamma (c - (c_i - g) / N): among the N clients of c, g takes c_i's place

Deviations from the released code: K_i is the executed number of steps (there, a constant that the local
steps do not heed), and the clip sees d (there, g alone).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class IGFL(Algorithm):
    paper: ClassVar[str] = "baseline of FedNSAM, 2026, arXiv:2602.23827"

    gamma: Annotated[float, Field(ge=0, le=1, description="weight of the global gradient")] = 0.9

    def init_server(self, w):
        return {"c": torch.zeros_like(w)}

    def init_client(self, w):
        return {"c_i": torch.zeros_like(w)}

    def broadcast(self, w, server):
        return w, {"c": server["c"]}

    def local_step(self, x, memory, grad, ctx):
        g = grad(x)
        renewed = ctx.shared["c"] - (memory["c_i"] - g) / ctx.experiment.clients
        return (1 - self.gamma) * g + self.gamma * renewed, memory

    def upload(self, delta, memory, ctx):
        g_i = delta / (-ctx.steps * ctx.lr)
        return {"delta": delta, "c": g_i}, {"c_i": g_i}

    def server_step(self, w, server, mean, ctx):
        w, _ = super().server_step(w, server, mean, ctx)
        return w, {"c": mean["c"]}

    def global_momentum(self, server):
        return -self.gamma * server["c"]
