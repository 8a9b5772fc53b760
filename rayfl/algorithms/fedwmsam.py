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

Deviations from the released code, each with the option that undoes it:
    perturbation      e_b is a vector of global norm rho. The released code takes delta_b's entries for its
                      tensors': it adds the number sign rho delta_b[j] / (sum_m |delta_b[m]| + 1e-7) to all
                      of tensor j, for the T tensors and the first T entries of delta_b in torch's order;
                      the norm of that was 56 to 79 times rho on ResNet-18. `scalars` does so; `sum_of_norms`
                      is what it means, rho delta_b / (sum_m ||delta_b of tensor m||)
    perturb_sign      it ascends; there, the sign is -1
    momentum_factor   Delta has no spurious factor; there, it is the decay of the learning rate, 0.998
    nominal_steps     K is the executed number of steps; there, the fraction E n_0 / B of client 0 for all
    adapt_at_zero     alpha is left alone while Delta = 0; there, it moves towards alpha_min

The released code is
    perturbation: scalars, perturb_sign: -1, momentum_factor: 0.998, nominal_steps: true, adapt_at_zero: true
with this file's other defaults, and in `federation` local_epochs 5, batch_size 50, lr 0.1, lr_schedule
exponential with lr_decay 0.998, weight_decay 0.001 and clip_norm 10. Its cohorts vary in size, which these
options leave out. Because its rho was tuned on that perturbation, tune it again for ours.

The published formula is alpha^ = mean_i cos(g_i, Delta), which keeps less momentum where clients agree,
against its own text: set `raw_cosine` for it; the released code has 1 - cos.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext, ExperimentInfo, Vectors
from rayfl.algorithms.vectors import TINY, axpy_, cosine, norm, perturb_, scale_add_


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
    perturbation: Annotated[
        Literal["vector", "sum_of_norms", "scalars"],
        Field(description="vector: of global norm rho; scalars: one number a tensor, as released"),
    ] = "vector"
    nominal_steps: Annotated[
        bool, Field(description="K is E n_0 / B of client 0 for all, as in the released code")
    ] = False
    adapt_at_zero: Annotated[
        bool, Field(description="adapt alpha while Delta = 0 too, as the released code")
    ] = False
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
        alpha = ctx.shared["alpha"]
        if ctx.step == 0:  # constant in the round, and four passes over memory a step
            memory = memory | {"momentum": self.momentum(memory, ctx)}
        momentum, at = memory["momentum"], x
        if self.rho > 0 and ctx.step > 0:
            s = ctx.lr if self.lookahead_scale == "lr" else self.lookahead_scale
            # delta_b times (1 - alpha): its direction alone counts, and alpha = 1 stays finite.
            ahead = axpy_((ctx.start - x).mul_(1 - alpha), ctx.step * s, momentum)
            at = self.perturbed(x, ahead, alpha, ctx.experiment)
        return scale_add_(grad(at), alpha, momentum), memory

    def momentum(self, memory: Vectors, ctx: ClientContext) -> Tensor:
        """(1 - alpha) Delta_i, written without the division, so that alpha = 1 stays finite."""
        alpha = ctx.shared["alpha"]
        momentum = ((1 - alpha) * ctx.shared["Delta"]).expand_as(ctx.start)
        if not self.control_variates:
            return momentum
        return momentum + alpha * (ctx.shared["c"] - memory["c_i"])

    def perturbed(self, x: Tensor, ahead: Tensor, alpha: Tensor, info: ExperimentInfo) -> Tensor:
        """x + e_b, given `ahead` = (1 - alpha) delta_b, whose memory it may take."""
        radius = self.perturb_sign * self.rho
        if self.perturbation == "vector":
            return perturb_(ahead, x, radius)
        if self.perturbation == "sum_of_norms":
            norms = torch.cat([norm(part) for part in ahead.split(info.sizes, dim=-1)], dim=-1)
            total = norms.sum(-1, keepdim=True)
            return x + torch.where(total < TINY, 0.0, ahead * (radius / total.clamp_min(TINY)))
        entries = ahead[..., info.first]  # [..., T]
        total = entries.abs().sum(-1, keepdim=True) + 1e-7 * (1 - alpha)
        numbers = entries * (radius / total.clamp_min(TINY))
        sizes = torch.tensor(info.sizes, device=numbers.device)
        return x + numbers.repeat_interleave(sizes, dim=-1, output_size=ahead.shape[-1])

    def steps(self, ctx: ClientContext) -> Tensor:
        """K_i of the client's formulas, `[..., 1]`."""
        nominal = ctx.experiment.nominal_steps
        return torch.full_like(ctx.steps, nominal) if self.nominal_steps else ctx.steps

    def upload(self, delta, memory, ctx):
        g_i, Delta = delta / (-self.steps(ctx) * ctx.lr), ctx.shared["Delta"]
        cos = cosine(g_i, Delta)
        target = cos if self.raw_cosine else 1 - cos
        if self.adapt_at_zero:
            target = torch.where(norm(g_i) * norm(Delta) > 0, target, 0.0)
        uploads = {"delta": delta, "target": target}
        if self.nominal_steps:
            uploads["K"] = self.steps(ctx)
        if not self.control_variates:
            return uploads, {}
        change = g_i - ctx.shared["c"]  # c_i+ - c_i
        return uploads | {"c_change": change}, {"c_i": memory["c_i"] + change}

    def server_step(self, w, server, mean, ctx):
        K = mean["K"] if self.nominal_steps else ctx.steps
        Delta = self.momentum_factor * mean["delta"] / (-K * ctx.lr)
        new = {"Delta": Delta, "alpha": server["alpha"]}
        if self.adaptive:
            target = mean["target"].clamp(self.alpha_min, self.alpha_max)
            adapted = (1 - self.ema) * server["alpha"] + self.ema * target
            moves = (norm(server["Delta"]) > 0) | self.adapt_at_zero
            new["alpha"] = torch.where(moves, adapted, server["alpha"])
        if self.control_variates:
            new["c"] = server["c"] + ctx.participation * mean["c_change"]
        return w + self.server_lr * mean["delta"], new
