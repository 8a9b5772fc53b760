"""FedWMSAM: momentum-guided global perturbation, personalised momentum and an adaptive weight.

"FedWMSAM", NeurIPS 2025, arXiv:2511.22080, equations C1 to C3.

Legend (gradient convention: all point uphill):
    Delta    global momentum, the mean gradient of the last cohort, -D / (K lr)
    alpha    weight of the local gradient against Delta, adapted by C3
    c, c_i   control variates of the server and of client i; q_i = c - c_i
    Delta_i  personalised momentum, Delta + alpha / (1 - alpha) q_i  (C2)
    s        look-ahead scale

Local step b, one backward pass:
    delta_b = (start + b s Delta_i) - x          where the global momentum would be by now
    e_b     = sign * rho * delta_b / ||delta_b||, 0 at b = 0  (C1)
    d       = alpha grad(x + e_b) + (1 - alpha) Delta_i
Server:
    alpha^  = mean_i [1 - cos(g_i, Delta)], g_i = -D_i / (K_i lr)
    alpha   <- (1 - ema) alpha + ema clip(alpha^, alpha_min, alpha_max)  (C3), once Delta is not 0
    c, c_i  as SCAFFOLD;  Delta <- -D / (K lr)

Without C1, C2 and C3 (rho = 0, no control variates, not adaptive) this is FedCM; with rho = 0 and
alpha = 1 it is SCAFFOLD.

Deviations from the released code: the perturbation is a vector of global norm rho (there, one scalar
a tensor, whose norm is some 54 times rho on ResNet-18), it ascends (there, the sign is -: set
`perturb_sign` to -1), Delta has no spurious factor 0.998 (there, the decay of the learning rate: set
`momentum_factor` to it), K is the executed number of steps, and alpha is left alone while Delta = 0.
Because the released rho was tuned on that perturbation, tune it again. The published formula is
alpha^ = mean_i cos(g_i, Delta), which keeps less momentum where clients agree, against its own text: set
`raw_cosine` for it; the released code has 1 - cos.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.vectors import cosine, norm, scaled_to


@dataclass(frozen=True, kw_only=True)
class FedWMSAM(Algorithm):
    paper: ClassVar[str] = "FedWMSAM, NeurIPS 2025, arXiv:2511.22080"

    rho: Annotated[float, Field(ge=0, description="radius of the perturbation (C1)")] = 0.1
    alpha: Annotated[float, Field(gt=0, le=1, description="first weight of the local gradient")] = (
        0.1
    )
    adaptive: Annotated[bool, Field(description="adapt alpha to the cohort's cosines (C3)")] = True
    ema: Annotated[float, Field(ge=0, le=1, description="step of alpha's moving average")] = 0.01
    alpha_min: Annotated[float, Field(gt=0, le=1, description="lower clip of alpha's target")] = 0.1
    alpha_max: Annotated[float, Field(gt=0, le=1, description="upper clip of alpha's target")] = 0.9
    control_variates: Annotated[bool, Field(description="personalise the momentum (C2)")] = True
    perturb_sign: Annotated[
        Literal[1, -1], Field(description="1 perturbs uphill, -1 ahead, as the released code")
    ] = 1
    lookahead_scale: Annotated[
        Annotated[float, Field(ge=0)] | Literal["lr"],
        Field(description="s of the look-ahead b s Delta_i; 'lr' scales it as the iterates move"),
    ] = 1.0
    momentum_factor: Annotated[
        float, Field(gt=0, le=1, description="factor of Delta; the released code has 0.998")
    ] = 1.0
    raw_cosine: Annotated[bool, Field(description="alpha's target is cos, not 1 - cos")] = False
    server_lr: Annotated[float, Field(gt=0, description="server learning rate eta_g")] = 1.0

    def __post_init__(self):
        if self.alpha_min > self.alpha_max:
            raise ValueError(f"alpha_min = {self.alpha_min} exceeds alpha_max = {self.alpha_max}")

    def init_server(self, w):
        server = {"Delta": torch.zeros_like(w), "alpha": torch.full_like(w[:1], self.alpha)}
        return server | ({"c": torch.zeros_like(w)} if self.control_variates else {})

    def init_client(self, w):
        return {"c_i": torch.zeros_like(w)} if self.control_variates else {}

    def broadcast(self, w, server):
        return w, server

    def local_step(self, x, memory, grad, ctx):
        alpha, momentum = ctx.shared["alpha"], (1 - ctx.shared["alpha"]) * ctx.shared["Delta"]
        if self.control_variates:
            # (1 - alpha) Delta_i written without the division, so that alpha = 1 stays finite.
            momentum = momentum + alpha * (ctx.shared["c"] - memory["c_i"])
        if self.rho > 0 and ctx.step > 0:
            s = ctx.lr if self.lookahead_scale == "lr" else self.lookahead_scale
            # delta_b times (1 - alpha): its direction alone counts, and alpha = 1 stays finite.
            ahead = (1 - alpha) * (ctx.start - x) + (ctx.step * s) * momentum
            return alpha * grad(
                x + scaled_to(ahead, self.perturb_sign * self.rho)
            ) + momentum, memory
        return alpha * grad(x) + momentum, memory

    def upload(self, delta, memory, ctx):
        g_i = delta / (-ctx.steps * ctx.lr)
        cos = cosine(g_i, ctx.shared["Delta"])
        uploads = {"delta": delta, "target": cos if self.raw_cosine else 1 - cos}
        if not self.control_variates:
            return uploads, memory
        change = g_i - ctx.shared["c"]  # c_i+ - c_i
        return uploads | {"c_change": change}, {"c_i": memory["c_i"] + change}

    def server_step(self, w, server, mean, ctx):
        Delta = self.momentum_factor * mean["delta"] / (-ctx.steps * ctx.lr)
        new = {"Delta": Delta, "alpha": server["alpha"]}
        if self.adaptive:
            target = mean["target"].clamp(self.alpha_min, self.alpha_max)
            adapted = (1 - self.ema) * server["alpha"] + self.ema * target
            new["alpha"] = torch.where(norm(server["Delta"]) > 0, adapted, server["alpha"])
        if self.control_variates:
            new["c"] = server["c"] + ctx.participation * mean["c_change"]
        return w + self.server_lr * mean["delta"], new
