"""FedAdamW: local AdamW that goes on with the cohort's second moment and follows the last global update.

Liu et al., "FedAdamW: A Communication-Efficient Optimizer with Convergence and Generalization Guarantees
for Federated Large Models", 2025, arXiv:2510.27486.

Legend: m, v as in Local AdamW; Delta = mean gradient of the last cohort, -D / (K lr), 0 before the first
round (gradient convention); gamma = its weight, the paper's alpha; t = mean local steps of all rounds
before, k counts those of this round from 1.
Client:  m starts at 0, v at the server's;  d = m / (1 - beta1^k) / (sqrt(v / (1 - beta2^(t + k))) + epsilon)
         + gamma Delta
Server:  v <- mean of the clients' last v over the cohort;  t <- t + K

Deviations: v is averaged entry by entry, as in the released code (the paper sends one mean for each block
of the model, which saves almost half the upload). The released code divides m by 1 - beta1^(t + k), too,
which makes the first steps of later rounds short; all tensors of the model share its count of steps, which
each of them raises; and the first client that an actor trains does not get the server's v and t.
Weight decay, clipping and the size of `federation.lr` are as for Local AdamW.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.local_adamw import LocalAdamW


@dataclass(frozen=True, kw_only=True)
class FedAdamW(LocalAdamW):
    paper: ClassVar[str] = "Liu et al., 2025, arXiv:2510.27486 (needs a small lr)"

    gamma: Annotated[float, Field(ge=0, description="weight of the last global update")] = 0.5

    def init_server(self, w):
        zeros = torch.zeros_like(w)
        return {"Delta": zeros, "v": zeros, "t": torch.zeros_like(w[:1])}

    def broadcast(self, w, server):
        return w, server

    def local_step(self, x, memory, grad, ctx):
        if ctx.step == 0:
            memory = {"m": torch.zeros_like(x), "v": ctx.shared["v"].expand_as(x)}
        k = ctx.step + 1
        seen2 = 1 - self.beta2 ** (ctx.shared["t"] + k)
        direction, memory = self.adam(grad(x), memory, 1 - self.beta1**k, seen2)
        return direction + self.gamma * ctx.shared["Delta"], memory

    def upload(self, delta, memory, ctx):
        return {"delta": delta, "v": memory["v"]}, {}

    def server_step(self, w, server, mean, ctx):
        w, _ = super().server_step(w, server, mean, ctx)
        Delta = mean["delta"] / (-ctx.steps * ctx.lr)
        v = mean["v"].clamp(min=0)  # where noise is added for privacy it may be below
        return w, {"Delta": Delta, "v": v, "t": server["t"] + ctx.steps}

    def global_momentum(self, server):
        return -self.gamma * server["Delta"]
