"""FedNSAM: global Nesterov momentum with sharpness-aware clients.

"FedNSAM: Consistency of Local and Global Flatness for Federated Learning", 2026, arXiv:2602.23827.
Three algorithms were released under this name; two are here.

`FedNSAM` (default) extrapolates, then runs local SAM: clients start at z = w + gamma m, and each step
uses the gradient at y + rho g / ||g||. Two backward passes a step.

`FedNSAMMomentum` uses the momentum for both, as the abstract's sentence says ("global Nesterov
momentum as the direction of client global perturbations and extrapolation"): clients start at w, and
each step uses the gradient at y + gamma m - rho m / ||m||. One backward pass a step; no perturbation
while m = 0.

Legend: m = momentum, the last displacement of w (it points downhill); the server is FedAvgM's, so with
the start z the new w is the mean of the clients' last iterates.
Deviation: m <- gamma m + D; the released server of 2026-03 forgets the old momentum and has m = D in its
first round, m = (1 + gamma) D afterwards: set `released_server` for it (begun = 1 after the first round,
0 before it). The released worker ignores the configured rho and gamma; here they hold.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.base import sam
from rayfl.algorithms.fedavgm import FedAvgM
from rayfl.algorithms.fednesterov import FedNesterov
from rayfl.algorithms.fields import Momentum, Rho
from rayfl.algorithms.vectors import scaled_to


@dataclass(frozen=True, kw_only=True)
class FedNSAM(FedNesterov):
    paper: ClassVar[str] = "FedNSAM, 2026, arXiv:2602.23827 (extrapolation and local SAM)"

    rho: Rho = 0.05
    released_server: Annotated[
        bool, Field(description="the released server, which forgets the old m: (1 + gamma) D")
    ] = False

    def init_server(self, w):
        own = {"begun": torch.zeros_like(w[:1])} if self.released_server else {}
        return super().init_server(w) | own

    def local_step(self, x, memory, grad, ctx):
        return sam(grad, self.rho)(x), memory

    def server_step(self, w, server, mean, ctx):
        if not self.released_server:
            return super().server_step(w, server, mean, ctx)
        # Not "m = 0" for the first round: an m may be 0 later, in some of its entries above all.
        m = (1 + self.gamma * server["begun"]) * mean["delta"]
        return w + self.server_lr * m, {"m": m, "begun": torch.ones_like(server["begun"])}


@dataclass(frozen=True, kw_only=True)
class FedNSAMMomentum(FedAvgM):
    paper: ClassVar[str] = "FedNSAM, 2026, arXiv:2602.23827 (one backward pass, momentum as both)"

    gamma: Momentum = 0.85
    rho: Rho = 0.05

    def broadcast(self, w, server):
        return w, {"ahead": self.gamma * server["m"] - scaled_to(server["m"], self.rho)}

    def local_step(self, x, memory, grad, ctx):
        return grad(x + ctx.shared["ahead"]), memory
