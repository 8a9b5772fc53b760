"""FedMuon: local steps along orthogonalised momenta, with the cohort's momentum and its last update.

Liu et al., "FedMuon: Accelerating Federated Learning with Matrix Orthogonalization", 2025,
arXiv:2510.27403; the orthogonalisation is Muon's: Jordan et al., "Muon: An optimizer for hidden layers in
neural networks", 2024.

Legend (gradient convention: all point uphill):
    M      momentum of a client's gradients, a matrix for each tensor of two or more dimensions: its first
           dimension by all others together
    O      the orthogonal factor U V^T of M = U S V^T
    Delta  mean gradient of the last cohort, -D / (K lr), 0 before the first round
    gamma  weight of Delta, the paper's alpha;  beta = decay of M
Client:  M starts at the server's;  M <- beta M + g;  d = (1 - gamma) O + gamma Delta
Server:  w <- w + server_lr D;  M <- mean of the clients' last M over the cohort

O is approximate, by Newton and Schulz: X = M / ||M||, then five times X <- a X + (b X X^T + c (X X^T)^2) X
with (a, b, c) = (3.4445, -4.775, 2.0315), which takes X's singular values from 0.002 to 1 to between 0.68
and 1.21.
A kernel's columns lie channels last, and so do those of its O: the order of a matrix's columns is no matter.
The formulas are of matrices. Tensors of one dimension take AdamW's steps, from new in every round, as in the
released code: their O is the direction of `local_adamw.py`, with beta1, beta2 and epsilon.

Options for what the released code does otherwise:
    momentum = nesterov  M <- beta M + (1 - beta) g, and O is that of beta M + (1 - beta) g
    tall                 a matrix's O is multiplied by sqrt(max(1, rows / columns)); for a convolution Muon's
                         public code takes height / width of the kernel there
    matrix_lr            a matrix's O is multiplied by this: 10 there for a ViT, whose lr is 3e-4, and 0.5 for
                         a ResNet-18, whose lr is 3e-2
Deviations from the released code: every client starts from the server's M (there, the first client of an
actor starts from 0, so that results depend on the actors), X has the parameters' type (there, bfloat16),
weight decay has the learning rate of the round (there, 1 - gamma of it, times `matrix_lr`), and a tensor of
three dimensions is one matrix (there, one for each first index).
`federation.clip_norm` clips each gradient before the momenta see it, and weight decay is decoupled, as there.
A step moves each matrix by about lr along each of its singular directions, and each other parameter by about
lr: choose `federation.lr` for that.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import TensorInfo
from rayfl.algorithms.fields import Decay1, Decay2
from rayfl.algorithms.local_adamw import LocalAdamW
from rayfl.algorithms.vectors import scale_add_, scaled_to

NEWTON_SCHULZ = ((3.4445, -4.775, 2.0315),) * 5


@dataclass(frozen=True, kw_only=True)
class FedMuon(LocalAdamW):
    paper: ClassVar[str] = "Liu et al., 2025, arXiv:2510.27403 (needs a small lr)"

    gamma: Annotated[float, Field(ge=0, lt=1, description="weight of the last global update")] = 0.5
    beta: Annotated[float, Field(ge=0, lt=1, description="decay of the matrices' momentum")] = 0.98
    momentum: Annotated[
        Literal["heavy_ball", "nesterov"],
        Field(description="beta M + g, or, as released, a moving average that looks ahead"),
    ] = "heavy_ball"
    tall: Annotated[
        bool,
        Field(description="longer steps for matrices with more rows than columns, as released"),
    ] = False
    matrix_lr: Annotated[
        float, Field(gt=0, description="learning rate of matrices over that of other tensors")
    ] = 1.0
    beta1: Decay1 = 0.9
    beta2: Decay2 = 0.95

    def init_server(self, w):
        return {"Delta": torch.zeros_like(w), "M": torch.zeros_like(w)}

    def broadcast(self, w, server):
        return w, server

    def local_step(self, x, memory, grad, ctx):
        matrices = [t for t in ctx.experiment.tensors if len(t.shape) > 1]
        others = [t for t in ctx.experiment.tensors if len(t.shape) < 2]
        g = grad(x)
        g_others = torch.cat([g[..., :0], *(t.part(g) for t in others)], dim=-1)
        if ctx.step == 0:
            zeros = torch.zeros_like(g_others)
            memory = {"M": ctx.shared["M"].expand_as(x), "m": zeros, "v": zeros}
        k = ctx.step + 1
        adam, memory_adam = self.adam(g_others, memory, 1 - self.beta1**k, 1 - self.beta2**k)
        M = ahead = self.beta * memory["M"] + g
        if self.momentum == "nesterov":
            M = self.beta * memory["M"] + (1 - self.beta) * g
            ahead = self.beta * M + (1 - self.beta) * g
        direction = torch.empty_like(ahead)
        for t in matrices:
            factor = self.matrix_lr * (stretch(t) if self.tall else 1.0)
            t.matrix(direction).copy_(factor * orthogonal(t.matrix(ahead)))
        for t, value in zip(others, adam.split([t.size for t in others], dim=-1), strict=True):
            t.part(direction).copy_(value)
        momentum = self.gamma * ctx.shared["Delta"]
        return scale_add_(direction, 1 - self.gamma, momentum), memory_adam | {"M": M}

    def upload(self, delta, memory, ctx):
        M = memory["M"].clone()
        for t in ctx.experiment.tensors:
            if len(t.shape) < 2:  # it was carried along for nothing
                t.part(M).zero_()
        return {"delta": delta, "M": M}, {}

    def server_step(self, w, server, mean, ctx):
        w, _ = super().server_step(w, server, mean, ctx)
        return w, {"Delta": mean["delta"] / (-ctx.steps * ctx.lr), "M": mean["M"]}

    def global_momentum(self, server):
        return -self.gamma * server["Delta"]


def stretch(t: TensorInfo) -> float:
    """The square root of rows / columns, and at least 1."""
    return max(1.0, t.shape[0] ** 2 / t.size) ** 0.5


def orthogonal(M: Tensor) -> Tensor:
    """About U V^T of M = U S V^T, and 0 where M is 0; `[..., rows, columns]`, two or more dimensions."""
    if M.shape[-2] > M.shape[-1]:
        return orthogonal(M.mT).mT
    X = scaled_to(M.flatten(-2), 1.0).unflatten(-1, M.shape[-2:])
    for a, b, c in NEWTON_SCHULZ:
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X
