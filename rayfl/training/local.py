"""Local training: the one loop that every algorithm runs in.

Shapes: C clients of a stack, P parameters, K_i local steps of client i.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext, Vectors
from rayfl.algorithms.vectors import norm
from rayfl.training.batches import Minibatch
from rayfl.training.gradient import Oracle


@dataclass(frozen=True, kw_only=True)
class SGD:
    """The local optimiser, the same for every algorithm."""

    lr: float
    weight_decay: float
    max_norm: float | None
    """Clip each client's direction to this L2 norm; None: no clipping."""

    def step(self, x: Tensor, direction: Tensor) -> Tensor:
        """`x - lr * (clip(direction) + weight_decay * x)`, decay at the unperturbed x and not clipped."""
        if self.max_norm is not None:
            clip = (self.max_norm / (norm(direction) + 1e-6)).clamp_max(1.0)
            stepped = torch.addcmul(x, direction, clip, value=-self.lr)
        else:
            stepped = torch.add(x, direction, alpha=-self.lr)
        if self.weight_decay:
            stepped.add_(x, alpha=-self.lr * self.weight_decay)
        return stepped


@dataclass(frozen=True)
class Trained:
    """What a stack of clients brought back."""

    uploads: Vectors
    """`[C, P]` or `[C, 1]` each."""
    memory: Vectors
    losses: Tensor
    """`[C]`, mean over the client's steps of the loss where the first gradient of a step was taken."""
    backward_passes: int


def train_stack(
    algorithm: Algorithm,
    oracle: Oracle,
    minibatch: Callable[[int], Minibatch],
    start: Tensor,
    shared: Vectors,
    memory: Vectors,
    steps: list[int],
    sgd: SGD,
) -> Trained:
    """Train C clients from `start [P]` for `steps[i]` steps each; a finished client stays as it is."""
    counts = torch.tensor(steps, device=start.device).unsqueeze(-1)
    ctx = ClientContext(
        start=start.expand(len(steps), -1),
        shared=shared,
        lr=sgd.lr,
        steps=counts.to(start.dtype),
        step=0,
    )
    x, total, passes = ctx.start, torch.zeros(len(steps), device=start.device), 0
    for k in range(max(steps)):
        batch, calls = minibatch(k), []

        def grad(at: Tensor, batch: Minibatch = batch, calls: list[Tensor] = calls) -> Tensor:
            gradient, losses = oracle(at, batch)
            calls.append(losses)
            return gradient

        direction, new_memory = algorithm.local_step(x, memory, grad, ctx._replace(step=k))
        stepped = sgd.step(x, direction)
        losses = calls[0] if calls else torch.zeros_like(total)
        running = sum(k < count for count in steps)
        passes += len(calls) * running
        if running == len(steps):
            x, memory, total = stepped, new_memory, total + losses
        else:
            active = counts > k  # [C, 1]
            x, memory = torch.where(active, stepped, x), _where(active, new_memory, memory)
            total = total + torch.where(active.squeeze(-1), losses, 0)
    uploads, memory = algorithm.upload(x - start, memory, ctx._replace(step=max(steps)))
    return Trained(uploads, memory, total / counts.squeeze(-1), passes)


def _where(active: Tensor, new: Vectors, old: Vectors) -> Vectors:
    return {
        name: value if value is old[name] else torch.where(active, value, old[name])
        for name, value in new.items()
    }
