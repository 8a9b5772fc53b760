"""FedNesterov: FedAvgM whose clients start where the momentum leads.

A baseline of "FedNSAM: Consistency of Local and Global Flatness for Federated Learning", 2026,
arXiv:2602.23827; FedACG (arXiv:2201.03172) without its proximal term.
Legend: m = momentum, the last displacement of w; clients start at z = w + gamma m.
"""

from dataclasses import dataclass
from typing import ClassVar

from rayfl.algorithms.fedavgm import FedAvgM
from rayfl.algorithms.fields import Momentum


@dataclass(frozen=True, kw_only=True)
class FedNesterov(FedAvgM):
    paper: ClassVar[str] = "baseline of FedNSAM, 2026, arXiv:2602.23827"

    gamma: Momentum = 0.85

    def broadcast(self, w, server):
        return w + self.gamma * server["m"], {}
