"""FedSAM: FedAvg whose clients minimise sharpness.

Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022,
arXiv:2206.02618, Algorithm 1; Caldarola, Caputo and Ciccone, ECCV 2022, arXiv:2203.11834.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from rayfl.algorithms.base import sam
from rayfl.algorithms.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class FedSAM(FedAvg):
    paper: ClassVar[str] = "Qu et al., ICML 2022, arXiv:2206.02618"

    rho: Annotated[float, Field(ge=0, description="radius of the perturbation")] = 0.05

    def local_step(self, x, memory, grad, ctx):
        return sam(grad, self.rho)(x), memory
