"""FedGloSS: sharpness-aware minimisation on the server, with the last round's update for its ascent step.

Caldarola, Cagnasso, Caputo and Ciccone, "Beyond Local Sharpness: Communication-Efficient Global
Sharpness-aware Minimization for Federated Learning", CVPR 2025, arXiv:2412.03752, Algorithm 1.

Legend (lam, h_i and h as in FedDyn; lam = 1 / beta, h_i = -beta sigma_i, h = -beta sigma):
    D          mean update of the last cohort (displacement convention), 0 before the first round; the
               paper's pseudo-gradient is -D
    rho        radius of the server's perturbation
    rho_local  radius of the clients'; 0: they run SGD, one backward pass a step instead of two
Server:  start = w - rho D / ||D||, which is all that travels down
Client:  d = g(y + e) + lam (y - start) + lam h_i, e = rho_local g(y) / ||g(y)||;  h_i <- h_i + D_i
Server:  h <- h + S/N D;  w <- w + server_lr D + h, from the w that is not perturbed, with D_i measured from
         the perturbed start
With rho = 0 this is FedSpeed, with both radii 0 FedDyn.

The defaults are those of the paper's runs on CIFAR-10; on CIFAR-100 it has rho = 0.01, rho_local = 0.2 and
lam = 0.01. There both radii grow from 0.001 over the first rounds: a schedule of rho and rho_local.

Deviations: the mean over the cohort is uniform. The released code divides the step of sigma by S once more,
has sigma_i and the anchor of each epoch (the same where a round is one epoch), and its radius of the server
does not grow: it is rho_local + (rho - 0.001) / T_s in the T_s rounds of the warm-up.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.base import sam
from rayfl.algorithms.feddyn import FedDyn
from rayfl.algorithms.vectors import scaled_to


@dataclass(frozen=True, kw_only=True)
class FedGloSS(FedDyn):
    paper: ClassVar[str] = "Caldarola et al., CVPR 2025, arXiv:2412.03752"

    rho: Annotated[float, Field(ge=0, description="radius of the server's perturbation")] = 0.15
    rho_local: Annotated[float, Field(ge=0, description="radius of the clients'; 0: SGD")] = 0.15

    def init_server(self, w):
        return super().init_server(w) | {"D": torch.zeros_like(w)}

    def broadcast(self, w, server):
        return w + scaled_to(server["D"], -self.rho), {}

    def local_step(self, x, memory, grad, ctx):
        if self.rho_local > 0:
            grad = sam(grad, self.rho_local)
        return super().local_step(x, memory, grad, ctx)

    def server_step(self, w, server, mean, ctx):
        w, new = super().server_step(w, server, mean, ctx)
        return w, new | {"D": mean["delta"]}
