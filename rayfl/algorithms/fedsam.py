"""FedSAM: FedAvg whose clients minimise sharpness.

Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022,
arXiv:2206.02618, Algorithm 1; Caldarola, Caputo and Ciccone, ECCV 2022, arXiv:2203.11834.
"""

from dataclasses import dataclass
from typing import ClassVar

from rayfl.algorithms.base import Algorithm, sam
from rayfl.algorithms.fields import Rho


@dataclass(frozen=True, kw_only=True)
class FedSAM(Algorithm):
    paper: ClassVar[str] = "Qu et al., ICML 2022, arXiv:2206.02618"

    rho: Rho = 0.05

    def local_step(self, x, memory, grad, ctx):
        return sam(grad, self.rho)(x), memory
