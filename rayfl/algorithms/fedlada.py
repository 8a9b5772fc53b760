"""FedLADA: local adaptive steps, amended by the direction in which the last cohort went.

Sun et al., "Efficient Federated Learning via Local Adaptive Amended Optimizer with Linear Speedup",
TPAMI 2023, arXiv:2308.00522.

Legend: m, v = first and second moment of a client's gradients in this round, u = the largest v so far
(AMSGrad); Delta = the amended direction, mean gradient of the last cohort, -D / (K lr), 0 before the first
round (gradient convention); alpha = weight of the adaptive direction.
Client:  m starts at 0, v and u at the server's v;  d = alpha m / sqrt(u) + (1 - alpha) Delta
Server:  v <- mean of the clients' last u over the cohort; epsilon^2 before the first round

The formulas follow public descriptions of the paper's algorithm; compare them with its text before you
build on them.
Deviations from the code released with FedAdamW: u is the largest v (there, v itself), epsilon is the start
of sqrt(u) (there, added to it), the two directions weigh alpha and 1 - alpha (there, 1 and a gamma), there is
no bias correction (there, one whose count of steps goes on over the rounds), and weight decay is
`federation.weight_decay`, which the local loop adds to the direction (there, to the gradient).
`federation.clip_norm` clips each gradient, as there.
The adaptive part of a step moves every parameter by up to about alpha lr: choose `federation.lr` for that.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.fields import Decay1, Decay2
from rayfl.algorithms.vectors import scale_add_


@dataclass(frozen=True, kw_only=True)
class FedLADA(Algorithm):
    paper: ClassVar[str] = "Sun et al., TPAMI 2023, arXiv:2308.00522 (needs a small lr)"
    clips_gradients: ClassVar[bool] = True
    only_at_start: ClassVar[frozenset[str]] = frozenset({"epsilon"})

    alpha: Annotated[float, Field(gt=0, le=1, description="weight of the adaptive direction")] = 0.1
    beta1: Decay1 = 0.9
    beta2: Decay2 = 0.99
    epsilon: Annotated[float, Field(ge=1e-15, description="least root of the second moment")] = 1e-8

    def init_server(self, w):
        return {"Delta": torch.zeros_like(w), "v": torch.full_like(w, self.epsilon**2)}

    def broadcast(self, w, server):
        return w, server

    def local_step(self, x, memory, grad, ctx):
        if ctx.step == 0:
            v = ctx.shared["v"].expand_as(x)
            memory = {"m": torch.zeros_like(x), "v": v, "u": v}
        g = grad(x)
        m = self.beta1 * memory["m"] + (1 - self.beta1) * g
        v = self.beta2 * memory["v"] + (1 - self.beta2) * g.square()
        u = torch.maximum(memory["u"], v)
        momentum = (1 - self.alpha) * ctx.shared["Delta"]
        return scale_add_(m / u.sqrt(), self.alpha, momentum), {"m": m, "v": v, "u": u}

    def upload(self, delta, memory, ctx):
        return {"delta": delta, "v": memory["u"]}, {}

    def server_step(self, w, server, mean, ctx):
        w, _ = super().server_step(w, server, mean, ctx)
        # Where noise is added for privacy the mean may be below 0.
        v = torch.where(mean["v"] > 0, mean["v"], server["v"])
        return w, {"Delta": mean["delta"] / (-ctx.steps * ctx.lr), "v": v}

    def global_momentum(self, server):
        return (self.alpha - 1) * server["Delta"]
