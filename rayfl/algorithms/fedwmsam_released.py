"""The code released with FedWMSAM, each of whose differences from the paper's method has a switch.

"FedWMSAM", NeurIPS 2025, arXiv:2511.22080; the legend is that of `fedwmsam.py`, and so are the other
hyper-parameters.

    perturbation      `scalars` takes delta_b's entries for its tensors': it adds the number
                      -rho delta_b[j] / (sum_m |delta_b[m]| + 1e-7) to all of tensor j, for the T tensors
                      and the first T entries of delta_b in torch's order; the norm of that was 56 to 79 times
                      rho on ResNet-18. `sum_of_norms` is what it means,
                      rho delta_b / (sum_m ||delta_b of tensor m||); `vector` is the paper's
    momentum_factor   Delta has a spurious factor, the decay of the learning rate; the paper's is 1
    nominal_steps     K is the fraction E n_0 / B of client 0 for all; the paper's is the executed number
    adapt_at_zero     alpha moves towards alpha_min while Delta = 0; the paper leaves it alone

In `federation` the released code has local_epochs 5, batch_size 50, lr 0.1, lr_schedule exponential with
lr_decay 0.998, weight_decay 0.001 and clip_norm 10. Its cohorts vary in size, which these switches leave out.
Its rho was tuned on `scalars`: tune it again for another perturbation.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import ClientContext, ExperimentInfo, TensorInfo
from rayfl.algorithms.fedwmsam import FedWMSAM
from rayfl.algorithms.vectors import TINY, norm, perturb_


@dataclass(frozen=True, kw_only=True)
class FedWMSAMReleased(FedWMSAM):
    perturbation: Annotated[
        Literal["scalars", "sum_of_norms", "vector"],
        Field(description="scalars: one number a tensor; vector: of global norm rho, as the paper"),
    ] = "scalars"
    perturb_towards: Annotated[
        Literal["predicted", "uphill", "released"], Field(description="reading of C1")
    ] = "released"
    momentum_factor: Annotated[float, Field(gt=0, le=1, description="factor of Delta")] = 0.998
    nominal_steps: Annotated[bool, Field(description="K is E n_0 / B of client 0 for all")] = True
    adapt_at_zero: Annotated[bool, Field(description="adapt alpha while Delta = 0 too")] = True

    def perturbed(self, x: Tensor, delta: Tensor, radius: float, ctx: ClientContext) -> Tensor:
        tensors = ctx.experiment.tensors
        if self.perturbation == "vector":
            return perturb_(delta, x, radius)
        if self.perturbation == "sum_of_norms":
            norms = torch.cat([norm(t.part(delta)) for t in tensors], -1)
            total = norms.sum(-1, keepdim=True)
            return x + torch.where(total < TINY, 0.0, delta * (radius / total.clamp_min(TINY)))
        entries = first_entries(delta, tensors)  # [..., T]
        epsilon = 1e-7 * (1 - ctx.shared["alpha"])  # `delta` is (1 - alpha) delta_b
        total = entries.abs().sum(-1, keepdim=True) + epsilon
        numbers = (entries * (radius / total.clamp_min(TINY))).split(1, dim=-1)
        parts = [e.expand(*x.shape[:-1], t.size) for e, t in zip(numbers, tensors, strict=True)]
        return x + torch.cat(parts, dim=-1)

    def upload(self, delta, memory, ctx):
        if self.nominal_steps:
            ctx = ctx._replace(steps=torch.full_like(ctx.steps, nominal_steps(ctx.experiment)))
        uploads, memory = super().upload(delta, memory, ctx)
        if self.adapt_at_zero:
            g_i, Delta = delta / (-ctx.steps * ctx.lr), ctx.shared["Delta"]
            uploads["target"] = torch.where(norm(g_i) * norm(Delta) > 0, uploads["target"], 0.0)
        return uploads | ({"K": ctx.steps} if self.nominal_steps else {}), memory

    def server_step(self, w, server, mean, ctx):
        K = mean["K"] if self.nominal_steps else ctx.steps
        w, new = super().server_step(w, server, mean, ctx)
        return w, new | {"Delta": self.momentum_factor * mean["delta"] / (-K * ctx.lr)}

    def adapts(self, Delta: Tensor) -> Tensor:
        return super().adapts(Delta) | self.adapt_at_zero


def first_entries(v: Tensor, tensors: tuple[TensorInfo, ...]) -> Tensor:
    """The first T entries of `v` in torch's own order, `[..., P] -> [..., T]`, with T the number of tensors.

    Torch's order is that of the parameters' `reshape(-1)`, one after another.
    """
    count = len(tensors)
    parts = [t.view(v).reshape(*v.shape[:-1], -1) for t in tensors if t.offset < count]
    return torch.cat(parts, dim=-1)[..., :count].contiguous()


def nominal_steps(experiment: ExperimentInfo) -> float:
    """E n_0 / B with the n_0 samples of client 0, a fraction perhaps, where a round is E epochs; else K."""
    if experiment.local_epochs is None:
        return float(experiment.local_steps or 0)
    return experiment.local_epochs * int(experiment.samples[0]) / experiment.batch_size
