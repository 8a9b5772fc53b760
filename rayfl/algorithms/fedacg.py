"""FedACG: clients start where the momentum leads, and are held near that point.

Kim, Kim and Han, "Communication-Efficient Federated Learning with Accelerated Client Gradient",
CVPR 2024, arXiv:2201.03172.
Legend: m = momentum, the last displacement of w (the paper's lambda is gamma); clients start at
z = w + gamma m; beta = weight of the proximal term beta/2 ||y - z||^2. The new w is the mean of the
clients' last iterates.
Deviation: the mean over the cohort is uniform.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from rayfl.algorithms.fednesterov import FedNesterov


@dataclass(frozen=True, kw_only=True)
class FedACG(FedNesterov):
    paper: ClassVar[str] = "Kim, Kim and Han, CVPR 2024, arXiv:2201.03172"

    beta: Annotated[float, Field(ge=0, description="weight of the proximal term")] = 0.01

    def local_step(self, x, memory, grad, ctx):
        return grad(x) + self.beta * (x - ctx.start), memory
