"""FedGAMMA: SCAFFOLD whose clients minimise sharpness.

Dai et al., "FedGAMMA: Federated Learning with Global Sharpness-Aware Minimization", IEEE Transactions on
Neural Networks and Learning Systems, 2023; SCAFFOLD is arXiv:1910.06378, SAM is arXiv:2010.01412.
Legend: c, c_i as in SCAFFOLD; the perturbation follows the local gradient, without the correction.
"""

from dataclasses import dataclass
from typing import ClassVar

from rayfl.algorithms.base import sam
from rayfl.algorithms.fields import Rho
from rayfl.algorithms.scaffold import Scaffold


@dataclass(frozen=True, kw_only=True)
class FedGAMMA(Scaffold):
    paper: ClassVar[str] = "Dai et al., TNNLS 2023; arXiv:1910.06378 with arXiv:2010.01412"

    rho: Rho = 0.1

    def local_step(self, x, memory, grad, ctx):
        return super().local_step(x, memory, sam(grad, self.rho), ctx)
