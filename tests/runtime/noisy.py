"""A method that draws random numbers wherever it may."""

from dataclasses import dataclass

import torch

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.vectors import norm


@dataclass(frozen=True, kw_only=True)
class Noisy(Algorithm):
    """Some entries of a gradient are dropped; there is noise on directions, uploads and the mean."""

    def local_step(self, x, memory, grad, ctx):
        mask = ctx.random(x, lambda row, generator: row.bernoulli_(0.9, generator=generator))
        return grad(x) * mask + ctx.random(x) * ctx.lr, memory

    def upload(self, delta, memory, ctx):
        noise = ctx.random(delta, torch.Tensor.exponential_)
        return {"delta": delta + noise * 1e-3, "scale": norm(ctx.random(delta))}, memory

    def server_step(self, w, server, mean, ctx):
        return w + mean["delta"] + ctx.random(w) * 1e-3, server
