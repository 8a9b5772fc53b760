"""FedWSAM: clients run WSAM, which weighs sharpness as a term of the loss; FedCM's momentum is an option.

Yue, Jiang, Ye, Gao, Liu and Zhang, "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
Regularization Term", KDD 2023, arXiv:2305.15817. The paper is not about federated learning: its optimiser is
the clients' here.

Legend (gradient convention; Delta and alpha as in FedCM):
    e      rho g(y) / ||g(y)||, with the local gradient g;  g~ = g(y + e)
    gamma  weight of the sharpness L(y + e) - L(y) in the loss, as kappa = gamma / (1 - gamma)
Client:
    coupled    d = alpha ((1 - kappa) g + kappa g~) + (1 - alpha) Delta
    decoupled  d = alpha g + (1 - alpha) Delta + kappa (g~ - g): the sharpness stays out of the momentum's mix
Server:  FedAvg

With alpha = 1, the default, there is no momentum, both are the same, and no Delta travels. gamma = 0 is FedCM
(with alpha = 1 FedAvg) at the price of two backward passes; gamma = 1/2 is SAM: coupled it is MoFedSAM, with
alpha = 1 FedSAM.

Delta is the mean of the d of the last round, the sharpness in them included. In the long run, therefore, the
sharpness weighs kappa against the gradient where it is coupled, but kappa / alpha where it is decoupled.

The defaults of rho and gamma are those of the paper's optimiser: d = 9 g~ - 8 g, to first order SAM's
gradient with the radius 9 rho. That is much: the config quickstart learns with it, and does not with rho =
0.1, which that config has for every method. The paper finds gamma between 0.8 and 0.95 best.

Deviation: `federation.clip_norm` clips d (code that follows the paper clips g~ alone, before it is mixed).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.fedcm import FedCM
from rayfl.algorithms.fields import LocalWeight, Rho
from rayfl.algorithms.vectors import perturbed, scale_add_


@dataclass(frozen=True, kw_only=True)
class FedWSAM(FedCM):
    paper: ClassVar[str] = "WSAM: Yue et al., KDD 2023, arXiv:2305.15817"

    alpha: LocalWeight = 1.0
    rho: Rho = 0.05
    gamma: Annotated[float, Field(ge=0, lt=1, description="weight of the sharpness")] = 0.9
    decoupled: Annotated[bool, Field(description="keep the sharpness out of the momentum")] = True

    def broadcast(self, w, server):
        return (w, {}) if self.alpha == 1 else super().broadcast(w, server)

    def local_step(self, x, memory, grad, ctx):
        kappa = self.gamma / (1 - self.gamma)
        factor = 1.0 if self.decoupled else self.alpha
        g = grad(x)
        sharp = grad(perturbed(g, x, self.rho))
        momentum = torch.zeros_like(x)
        if self.alpha < 1:
            momentum = (1 - self.alpha) * ctx.shared["Delta"]
        # Rounds as FedCM and as SAM where one of the two weights is 0.
        plain = scale_add_(g, self.alpha - factor * kappa, momentum)
        return scale_add_(sharp, factor * kappa, plain), memory
