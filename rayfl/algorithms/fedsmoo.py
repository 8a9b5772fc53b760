"""FedSMOO: FedDyn for the parameters and, once more, for the perturbation.

Sun et al., "Dynamic Regularized Sharpness Aware Minimization in Federated Learning: Approaching Global
Consistency and Smooth Landscape", ICML 2023, arXiv:2305.11584.

Legend (lam, h_i and h as in FedDyn):
    s      the server's perturbation, of norm rho, 0 before the first round
    mu_i   dual variable of client i: how far its perturbations went beyond s, summed over its steps
Client:  q = g(y) - mu_i - s;  e = rho q / ||q||;  d = g(y + e) + lam (y - start) + lam h_i;
         mu_i <- mu_i + e - s
Server:  s <- rho mean(mu_i) / ||mean(mu_i)|| over the cohort

Deviation: the term of the last local perturbation in the paper's server update is left out, as in the
code that the FedWMSAM paper compares with.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rayfl.algorithms.base import shifted
from rayfl.algorithms.feddyn import FedDyn
from rayfl.algorithms.fields import Rho
from rayfl.algorithms.vectors import scaled_to


@dataclass(frozen=True, kw_only=True)
class FedSMOO(FedDyn):
    paper: ClassVar[str] = "Sun et al., ICML 2023, arXiv:2305.11584"

    rho: Rho = 0.1

    def init_server(self, w):
        return super().init_server(w) | {"s": torch.zeros_like(w)}

    def init_client(self, w):
        return super().init_client(w) | {"mu_i": torch.zeros_like(w)}

    def broadcast(self, w, server):
        return w, {"s": server["s"]}

    def local_step(self, x, memory, grad, ctx):
        s, mu_i = ctx.shared["s"], memory["mu_i"]
        e = scaled_to(grad(x) - mu_i - s, self.rho)
        direction, memory = super().local_step(x, memory, shifted(grad, e), ctx)
        return direction, memory | {"mu_i": mu_i + e - s}

    def upload(self, delta, memory, ctx):
        uploads, kept = super().upload(delta, memory, ctx)
        return uploads | {"mu": memory["mu_i"]}, memory | kept

    def server_step(self, w, server, mean, ctx):
        w, new = super().server_step(w, server, mean, ctx)
        return w, new | {"s": scaled_to(mean["mu"], self.rho)}
