"""FedCM: clients mix the global momentum into every local step.

Xu, Wang, Wang and Yao, "FedCM: Federated Learning with Client-level Momentum", 2021,
arXiv:2106.10874, Algorithm 2.
Legend: Delta = mean gradient of the last cohort, -D / (K lr), 0 before the first round; alpha = weight
of the local gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.fields import LocalWeight
from rayfl.algorithms.vectors import scale_add_


@dataclass(frozen=True, kw_only=True)
class FedCM(Algorithm):
    paper: ClassVar[str] = "Xu et al., 2021, arXiv:2106.10874"

    alpha: LocalWeight = 0.1

    def init_server(self, w):
        return {"Delta": torch.zeros_like(w)}

    def broadcast(self, w, server):
        return w, {"Delta": server["Delta"]}

    def local_step(self, x, memory, grad, ctx):
        return scale_add_(grad(x), self.alpha, (1 - self.alpha) * ctx.shared["Delta"]), memory

    def server_step(self, w, server, mean, ctx):
        Delta = mean["delta"] / (-ctx.steps * ctx.lr)
        return super().server_step(w, server, mean, ctx)[0], {"Delta": Delta}

    def global_momentum(self, server):
        return (self.alpha - 1) * server["Delta"]
