"""FedLESAM and its variants S and D: the perturbation comes from the global model's own path.

Fan et al., "Locally Estimated Global Perturbations are Better than Local Perturbations for Federated
Sharpness-aware Minimization", ICML 2024, arXiv:2405.18890.

All steps of a round use the gradient at y + e, with one and the same e: one backward pass a step.
    estimate = last_seen     e = rho (w_seen - w) / ||w_seen - w||, where w_seen is the global model of the
                             client's last cohort (the paper); 0 in its first one
    estimate = last_update   e = -rho u / ||u|| for everybody, where u is the last update of w (the released
                             code); 0 in the first round
Legend: seen = 1 for a client that has been in a cohort, else 0; S is SCAFFOLD with c, c_i, and D is
FedDyn with lam, h, h_i, both on these gradients.

Deviations from the released code: e is a vector of global norm rho (there, a scalar for each tensor);
the correction of S counts fully (there, a tenth: set `correction` to 0.1).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from rayfl.algorithms.base import Algorithm, ClientContext, Grad, Vectors, shifted
from rayfl.algorithms.feddyn import FedDyn
from rayfl.algorithms.fields import Rho
from rayfl.algorithms.scaffold import Scaffold
from rayfl.algorithms.vectors import scaled_to


@dataclass(frozen=True, kw_only=True)
class GlobalPerturbation(Algorithm):
    """Common part of the three: put it before the method that takes the steps."""

    paper: ClassVar[str] = "Fan et al., ICML 2024, arXiv:2405.18890"

    rho: Rho = 0.1
    estimate: Annotated[
        Literal["last_seen", "last_update"],
        Field(description="perturb against the way since the client's last cohort, or round"),
    ] = "last_seen"

    def init_server(self, w):
        own = {"u": torch.zeros_like(w)} if self.estimate == "last_update" else {}
        return super().init_server(w) | own

    def init_client(self, w):
        own = {"w_seen": torch.zeros_like(w), "seen": torch.zeros_like(w[:1])}
        return super().init_client(w) | (own if self.estimate == "last_seen" else {})

    def broadcast(self, w, server):
        start, shared = super().broadcast(w, server)
        if self.estimate == "last_update":
            shared = shared | {"e": scaled_to(server["u"], -self.rho)}
        return start, shared

    def perturbed(self, grad: Grad, memory: Vectors, ctx: ClientContext) -> Grad:
        """The gradient at y + e instead of y."""
        if self.estimate == "last_update":
            e = ctx.shared["e"]
        else:
            e = memory["seen"] * scaled_to(memory["w_seen"] - ctx.start, self.rho)
        return shifted(grad, e)

    def upload(self, delta, memory, ctx):
        uploads, kept = super().upload(delta, memory, ctx)
        if self.estimate == "last_seen":
            kept = kept | {"w_seen": ctx.start.clone(), "seen": torch.ones_like(memory["seen"])}
        return uploads, kept

    def server_step(self, w, server, mean, ctx):
        new_w, new = super().server_step(w, server, mean, ctx)
        return new_w, new | ({"u": new_w - w} if self.estimate == "last_update" else {})


@dataclass(frozen=True, kw_only=True)
class FedLESAM(GlobalPerturbation):
    def local_step(self, x, memory, grad, ctx):
        return self.perturbed(grad, memory, ctx)(x), memory


@dataclass(frozen=True, kw_only=True)
class FedLESAMS(GlobalPerturbation, Scaffold):
    correction: Annotated[float, Field(ge=0, description="factor of the correction c - c_i")] = 1.0

    def local_step(self, x, memory, grad, ctx):
        gradient = self.perturbed(grad, memory, ctx)(x)
        return gradient + self.correction * (ctx.shared["c"] - memory["c_i"]), memory


@dataclass(frozen=True, kw_only=True)
class FedLESAMD(GlobalPerturbation, FedDyn):
    def local_step(self, x, memory, grad, ctx):
        return super().local_step(x, memory, self.perturbed(grad, memory, ctx), ctx)
