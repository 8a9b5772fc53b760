"""FedExP: the server extrapolates beyond the mean update, the farther the less the clients agree.

Jhunjhunwala, Wang and Joshi, "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR 2023,
arXiv:2301.09604.

Legend (displacement convention):
    eta_g    server step of the round, max(1, mean(||D_i||^2) / (2 (||D||^2 + epsilon))); 1 before the first
Client:  FedAvg; uploads D_i and the number ||D_i||^2
Server:  w <- w + server_lr eta_g D
For a cohort of one, and for clients that agree, eta_g = 1: FedAvg. It is the metric server/eta_g.

epsilon is added to ||D||^2, so choose it anew for another model or learning rate: where it is small, the step
overshoots once D is small. The released code has 0.001 for CIFAR-10, CIFAR-100 and CINIC-10, 0.1 for EMNIST.

The paper evaluates the mean of the last two w, which may lie on either side of a valley: set
`evaluation.average.last=2`.

Deviations: the released code has S epsilon in place of epsilon, and multiplies it in each round by 0.998^2,
the square of its learning rate's decay.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.vectors import norm


@dataclass(frozen=True, kw_only=True)
class FedExP(Algorithm):
    paper: ClassVar[str] = "Jhunjhunwala et al., ICLR 2023, arXiv:2301.09604"

    epsilon: Annotated[float, Field(gt=0, description="added to the squared mean update")] = 1e-3

    def init_server(self, w):
        return {"eta_g": torch.ones_like(w[:1])}

    def upload(self, delta, memory, ctx):
        return {"delta": delta, "square": norm(delta).square()}, memory

    def server_step(self, w, server, mean, ctx):
        ratio = mean["square"] / (2 * (norm(mean["delta"]).square() + self.epsilon))
        eta_g = ratio.clamp_min(1.0)
        w, _ = super().server_step(w, server, {"delta": eta_g * mean["delta"]}, ctx)
        return w, {"eta_g": eta_g}
