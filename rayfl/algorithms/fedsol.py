"""FedSOL: the gradient where the client's model would have left the global one's outputs.

Lee, Jeong, Kim, Oh and Yun, "FedSOL: Stabilized Orthogonal Learning with Proximal Restrictions in Federated
Learning", CVPR 2024, arXiv:2308.12532.

Legend: z, z_glob = outputs for one sample of the model in training and of the start point; T = temperature;
g_p = gradient of the proximal loss KL(softmax(z_glob / T) || softmax(z / T)) alone on the minibatch, which
points away from the global model; Lambda = |x - start|, where each tensor is divided by its norm along its
first dimension, so that each of its columns has the norm 1, or is 0 where nothing has moved.
    adaptive   e = rho Lambda g_p / ||g_p||, element by element
    fixed      e = rho g_p / ||g_p||
Client:  d = g(x + e), the gradient of the cross-entropy alone
In a round's first step e is 0, and it has one backward pass. All others have two, and one forward pass more,
of the start point.

The entries of Lambda are at most 1, and mostly far below: the norm of the adaptive e is a small part of rho.
Do not compare this rho with that of SAM, and choose a smaller one for the fixed form.
Deviations from the released code: none in these formulas. There, the mean is weighted by sample counts
(`federation.weighting`), and clients have the momentum 0.9 (`federation.momentum`). Its options to perturb
the last layer alone, or all but that, are not here.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext
from rayfl.algorithms.divergence import divergence
from rayfl.algorithms.fields import Rho
from rayfl.algorithms.vectors import TINY, scaled_to


@dataclass(frozen=True, kw_only=True)
class FedSOL(Algorithm):
    paper: ClassVar[str] = "Lee et al., CVPR 2024, arXiv:2308.12532"
    compares_outputs: ClassVar[bool] = True

    rho: Rho = 1.0
    strength: Annotated[
        Literal["adaptive", "fixed"],
        Field(description="perturb each parameter by how far it has moved, or all alike"),
    ] = "adaptive"
    temperature: Annotated[float, Field(gt=0, description="temperature of the proximal loss")] = 3.0

    def local_step(self, x, memory, grad, ctx):
        if ctx.step == 0:  # rounding alone tells the outputs from the start's
            return grad(x), memory

        def proximal(z, batch):
            return divergence(batch.forward(ctx.start), z, self.temperature)

        e = scaled_to(grad(x, proximal, cross_entropy=False), self.rho)
        if self.strength == "adaptive":
            e *= moved(x, ctx)
        return grad(x + e), memory


def moved(x: Tensor, ctx: ClientContext) -> Tensor:
    """Lambda, `[..., P]`."""
    Lambda = (x - ctx.start).abs_()
    for t in ctx.experiment.tensors:
        columns = t.matrix(Lambda).mT
        columns /= torch.linalg.vector_norm(columns, dim=-1, keepdim=True).clamp_min(TINY)
    return Lambda
