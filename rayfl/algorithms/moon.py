"""MOON: a client's outputs are drawn to the global model's and away from those of its own last model.

Li, He and Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv:2103.16257, equation (3).

Legend: z, z_glob, z_prev = outputs for one sample of the model in training, of the start point, and of
w_prev, the client's last iterate of its last cohort; tau = temperature; mu = weight. With
near = exp(cos(z, z_glob) / tau) and far = exp(cos(z, z_prev) / tau), each sample's loss is
    cross-entropy - mu log(near / (near + far))
seen = 1 for a client that has been in a cohort, else 0; without a w_prev its loss is the cross-entropy.
One backward pass a step, and two forward passes more.

Deviations: the outputs are the logits, as in the code released with FedNSAM (the paper takes those of a
projection head, which a model must have), so tune mu again: its default is the paper's code's, and the
code released with FedNSAM has 0.001.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch.nn import functional as F

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class Moon(Algorithm):
    paper: ClassVar[str] = "Li, He and Song, CVPR 2021, arXiv:2103.16257"
    compares_outputs: ClassVar[bool] = True

    mu: Annotated[float, Field(ge=0, description="weight of the contrastive term")] = 1.0
    tau: Annotated[float, Field(gt=0, description="temperature of the contrastive term")] = 0.5

    def init_client(self, w):
        return {"w_prev": torch.zeros_like(w), "seen": torch.zeros_like(w[:1])}

    def local_step(self, x, memory, grad, ctx):
        def contrast(z, batch):
            near = F.cosine_similarity(z, batch.forward(ctx.start), dim=-1)  # [..., B]
            far = F.cosine_similarity(z, batch.forward(memory["w_prev"]), dim=-1)
            return self.mu * memory["seen"] * F.softplus((far - near) / self.tau)

        return grad(x, contrast), memory

    def upload(self, delta, memory, ctx):
        return {"delta": delta}, {
            "w_prev": ctx.start + delta,
            "seen": torch.ones_like(memory["seen"]),
        }
