"""FedProx: FedAvg whose clients are held near their start point.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127, Algorithm 2.
Legend: mu = weight of the proximal term mu/2 ||y - start||^2.
Deviations: the mean over the cohort is uniform; clients take a fixed number of steps, so their
inexactness is not a parameter. The proximal term is clipped together with the gradient.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class FedProx(Algorithm):
    paper: ClassVar[str] = "Li et al., MLSys 2020, arXiv:1812.06127"

    mu: Annotated[float, Field(ge=0, description="weight of the proximal term")] = 0.1

    def local_step(self, x, memory, grad, ctx):
        return grad(x) + self.mu * (x - ctx.start), memory
