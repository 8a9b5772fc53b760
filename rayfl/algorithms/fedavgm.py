"""FedAvgM: FedAvg with heavy-ball momentum on the server.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, arXiv:1909.06335, section 4.3.
Legend: m = momentum, a trace of the mean updates (a displacement: it points downhill).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.fields import Momentum


@dataclass(frozen=True, kw_only=True)
class FedAvgM(Algorithm):
    paper: ClassVar[str] = "Hsu, Qi and Brown, 2019, arXiv:1909.06335"

    gamma: Momentum = 0.9

    def init_server(self, w):
        return {"m": torch.zeros_like(w)}

    def server_step(self, w, server, mean, ctx):
        m = self.gamma * server["m"] + mean["delta"]  # a trace: no factor (1 - gamma)
        return w + self.server_lr * m, {"m": m}

    def global_momentum(self, server):
        return self.gamma * server["m"]
