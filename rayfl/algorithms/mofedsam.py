"""MoFedSAM: FedCM whose clients minimise sharpness.

Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022,
arXiv:2206.02618.
Legend: Delta, alpha as in FedCM; the perturbation follows the local gradient, before it is mixed.
"""

from dataclasses import dataclass
from typing import ClassVar

from rayfl.algorithms.base import sam
from rayfl.algorithms.fedcm import FedCM
from rayfl.algorithms.fields import Rho


@dataclass(frozen=True, kw_only=True)
class MoFedSAM(FedCM):
    paper: ClassVar[str] = "Qu et al., ICML 2022, arXiv:2206.02618"

    rho: Rho = 0.1

    def local_step(self, x, memory, grad, ctx):
        return super().local_step(x, memory, sam(grad, self.rho), ctx)
