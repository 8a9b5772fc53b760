"""Local AdamW: FedAvg whose clients run AdamW, from new in every round.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101, Algorithm 2,
on the clients of McMahan et al., AISTATS 2017, arXiv:1602.05629; a baseline of FedAdamW,
arXiv:2510.27486.

Legend: m, v = first and second moment of the gradients of this round; k counts its local steps from 1.
    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
    d = m / (1 - beta1^k) / (sqrt(v / (1 - beta2^k)) + epsilon)

A step moves every parameter by up to about lr, so `federation.lr` is to be some 100 times smaller than for
SGD: the code released with FedAdamW has 3e-4. AdamW's decoupled weight decay is `federation.weight_decay`,
which the local loop adds to any direction (0.01 there). `federation.clip_norm` clips each gradient before the
moments see it, as there.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import Algorithm, Vectors
from rayfl.algorithms.fields import Decay1, Decay2


@dataclass(frozen=True, kw_only=True)
class LocalAdamW(Algorithm):
    paper: ClassVar[str] = "Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101 (needs a small lr)"
    clips_gradients: ClassVar[bool] = True

    beta1: Decay1 = 0.9
    beta2: Decay2 = 0.999
    epsilon: Annotated[float, Field(gt=0, description="added to the root of the second moment")] = (
        1e-8
    )

    def local_step(self, x, memory, grad, ctx):
        if ctx.step == 0:
            memory = {"m": torch.zeros_like(x), "v": torch.zeros_like(x)}
        k = ctx.step + 1
        return self.adam(grad(x), memory, 1 - self.beta1**k, 1 - self.beta2**k)

    def adam(
        self, g: Tensor, memory: Vectors, seen1: float, seen2: float | Tensor
    ) -> tuple[Tensor, Vectors]:
        """Adam's direction and the new moments; `seen1`, `seen2` are the weights of all gradients in them."""
        m = self.beta1 * memory["m"] + (1 - self.beta1) * g
        v = self.beta2 * memory["v"] + (1 - self.beta2) * g.square()
        return m / seen1 / ((v / seen2).sqrt() + self.epsilon), {"m": m, "v": v}

    def upload(self, delta, memory, ctx):
        return {"delta": delta}, {}
