"""FedASAM: FedAvg with adaptive SAM on the clients.

Caldarola, Caputo and Ciccone, "Improving Generalization in Federated Learning by Seeking Flat Minima",
ECCV 2022, arXiv:2203.11834; ASAM is Kwon et al., ICML 2021, arXiv:2102.11600.
Legend: T = |y| + eta, the size of each parameter; the perturbation is rho T^2 g / ||T g||.
Deviation: T is |y| + eta for every parameter, biases and normalisation layers included.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from rayfl.algorithms.base import Algorithm, adaptive_sam


@dataclass(frozen=True, kw_only=True)
class FedASAM(Algorithm):
    paper: ClassVar[str] = "Caldarola et al., ECCV 2022, arXiv:2203.11834"

    rho: Annotated[float, Field(ge=0, description="radius, relative to the parameters")] = 0.5
    eta: Annotated[float, Field(ge=0, description="added to every |parameter|")] = 0.01

    def local_step(self, x, memory, grad, ctx):
        return adaptive_sam(grad, self.rho, self.eta)(x), memory
