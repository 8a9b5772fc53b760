"""FedAvg: local SGD, then the plain mean.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv:1602.05629, Algorithm 1.
Deviation: the mean over the cohort is uniform, not weighted by sample counts, as in the papers that
this project reproduces; a server learning rate `server_lr` (1 in the paper) scales the mean update.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class FedAvg(Algorithm):
    paper: ClassVar[str] = "McMahan et al., AISTATS 2017, arXiv:1602.05629"

    server_lr: Annotated[float, Field(gt=0, description="server learning rate eta_g")] = 1.0

    def server_step(self, w, server, mean, ctx):
        return w + self.server_lr * mean["delta"], server
