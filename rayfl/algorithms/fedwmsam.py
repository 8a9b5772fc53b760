"""FedWMSAM: momentum-guided global perturbation, personalised momentum and an adaptive weight.

"FedWMSAM", NeurIPS 2025, arXiv:2511.22080, equations C1 to C3. `fedwmsam_released.py` is the code that was
released with it, and lists the differences.

Legend (gradient convention: all point uphill):
    Delta    global momentum, the mean gradient of the last cohort, -D / (K lr)
    alpha    weight of the local gradient against Delta, adapted by C3
    c, c_i   control variates of the server and of client i; q_i = c - c_i
    Delta_i  personalised momentum, Delta + alpha / (1 - alpha) q_i  (C2)
    s        look-ahead scale

Local step b, one backward pass:
    delta_b = (start - b s Delta_i) - x          from here to where the global model is heading
    e_b     = rho * delta_b / ||delta_b||, 0 at b = 0  (C1)
    d       = alpha grad(x + e_b) + (1 - alpha) Delta_i
Server:
    alpha^  = mean_i [1 - cos(g_i, Delta)], g_i = -D_i / (K_i lr)
    alpha   <- (1 - ema) alpha + ema clip(alpha^, alpha_min, alpha_max)  (C3), once Delta is not 0
    c, c_i  as SCAFFOLD;  Delta <- -D / (K lr)

The paper's C1 has start + b Delta_i, with a Delta that its algorithm lets point downhill and its server step
uphill, and no learning rate in it. `perturb_towards` names three readings; docs/fidelity.md compares them:
    predicted   as above, the default: what its text says; s = lr, which makes it the position after b global
                steps
    uphill      delta_b = (start + b s Delta_i) - x, the formula's letters with Delta uphill; s = 1
    released    minus uphill's delta_b, the sign of the released code; s = 1

Without C1, C2 and C3 (rho = 0, no control variates, not adaptive) this is FedCM; with rho = 0 and
alpha = 1 it is SCAFFOLD.

The published formula is alpha^ = mean_i cos(g_i, Delta), which keeps less momentum where clients agree,
against its own text: set `raw_cosine` for it; the released code has 1 - cos.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext, Vectors
from rayfl.algorithms.fields import LocalWeight, Rho
from rayfl.algorithms.vectors import cosine, difference_plus, norm, perturb_, scale_add_


@dataclass(frozen=True, kw_only=True)
class FedWMSAM(Algorithm):
    paper: ClassVar[str] = "FedWMSAM, NeurIPS 2025, arXiv:2511.22080"
    only_at_start: ClassVar[frozenset[str]] = frozenset({"alpha"})

    rho: Rho = 0.1
    alpha: LocalWeight = 0.1
    adaptive: Annotated[bool, Field(description="adapt alpha to the cohort's cosines (C3)")] = True
    ema: Annotated[float, Field(ge=0, le=1, description="step of alpha's moving average")] = 0.01
    alpha_min: Annotated[float, Field(gt=0, le=1, description="lower clip of alpha's target")] = 0.1
    alpha_max: Annotated[float, Field(gt=0, le=1, description="upper clip of alpha's target")] = 0.9
    control_variates: Annotated[bool, Field(description="personalise the momentum (C2)")] = True
    perturb_towards: Annotated[
        Literal["predicted", "uphill", "released"], Field(description="reading of C1")
    ] = "predicted"
    lookahead_scale: Annotated[
        Annotated[float, Field(ge=0)] | Literal["lr", "auto"],
        Field(description="s of the look-ahead b s Delta_i; auto: the reading's own"),
    ] = "auto"
    raw_cosine: Annotated[bool, Field(description="alpha's target is cos, not 1 - cos")] = False

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
        alpha = ctx.shared["alpha"]
        if ctx.step == 0:  # constant in the round, and four passes over memory a step
            memory = memory | {"momentum": self.momentum(memory, ctx)}
        momentum, at = memory["momentum"], x
        if self.rho > 0 and ctx.step > 0:
            # delta_b times (1 - alpha): its direction alone counts, and alpha = 1 stays finite.
            delta = difference_plus(ctx.start, x, 1 - alpha, momentum, ctx.step * self.speed(ctx))
            at = self.perturbed(
                x, delta, -self.rho if self.perturb_towards == "released" else self.rho, ctx
            )
        return scale_add_(grad(at), alpha, momentum), memory

    def momentum(self, memory: Vectors, ctx: ClientContext) -> Tensor:
        """(1 - alpha) Delta_i, written without the division, so that alpha = 1 stays finite."""
        alpha = ctx.shared["alpha"]
        momentum = ((1 - alpha) * ctx.shared["Delta"]).expand_as(ctx.start)
        if not self.control_variates:
            return momentum
        return momentum + alpha * (ctx.shared["c"] - memory["c_i"])

    def speed(self, ctx: ClientContext) -> float | Tensor:
        """s, negative where the look-ahead goes downhill."""
        s = self.lookahead_scale
        if s == "auto":
            s = "lr" if self.perturb_towards == "predicted" else 1.0
        s = ctx.lr if s == "lr" else s
        return -s if self.perturb_towards == "predicted" else s

    def perturbed(self, x: Tensor, delta: Tensor, radius: float, ctx: ClientContext) -> Tensor:
        """x + e_b, given (1 - alpha) `delta`_b, whose memory it may take, and a signed radius."""
        return perturb_(delta, x, radius)

    def upload(self, delta, memory, ctx):
        g_i = delta / (-ctx.steps * ctx.lr)
        cos = cosine(g_i, ctx.shared["Delta"])
        uploads = {"delta": delta, "target": cos if self.raw_cosine else 1 - cos}
        if not self.control_variates:
            return uploads, {}
        change = g_i - ctx.shared["c"]  # c_i+ - c_i
        return uploads | {"c_change": change}, {"c_i": memory["c_i"] + change}

    def server_step(self, w, server, mean, ctx):
        new = {"Delta": mean["delta"] / (-ctx.steps * ctx.lr), "alpha": server["alpha"]}
        if self.adaptive:
            target = mean["target"].clamp(self.alpha_min, self.alpha_max)
            adapted = (1 - self.ema) * server["alpha"] + self.ema * target
            new["alpha"] = torch.where(self.adapts(server["Delta"]), adapted, server["alpha"])
        if self.control_variates:
            new["c"] = server["c"] + ctx.participation * mean["c_change"]
        return super().server_step(w, server, mean, ctx)[0], new

    def global_momentum(self, server):
        return (server["alpha"] - 1) * server["Delta"]

    def adapts(self, Delta: Tensor) -> Tensor:
        """True if alpha follows its target in this round, bool `[1]`."""
        return norm(Delta) > 0
