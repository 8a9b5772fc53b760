"""FedSpeed: FedDyn's correction with sharpness-aware clients.

Sun et al., "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization
Accuracy", ICLR 2023, arXiv:2302.10429.
Legend: lam, h_i and h as in FedDyn (displacements); the paper's lambda is 1 / lam.
Deviations, as in the code that the FedWMSAM paper compares with: the step follows the perturbed gradient
alone (the paper mixes it with the unperturbed one), and the server is FedDyn's.
"""

from dataclasses import dataclass
from typing import ClassVar

from rayfl.algorithms.base import sam
from rayfl.algorithms.feddyn import FedDyn
from rayfl.algorithms.fields import Rho


@dataclass(frozen=True, kw_only=True)
class FedSpeed(FedDyn):
    paper: ClassVar[str] = "Sun et al., ICLR 2023, arXiv:2302.10429"

    rho: Rho = 0.1

    def local_step(self, x, memory, grad, ctx):
        return super().local_step(x, memory, sam(grad, self.rho), ctx)
