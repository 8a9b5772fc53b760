"""Local training: the one loop that every algorithm runs in.

Shapes: C clients of a stack, P parameters, K_i local steps of client i.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext, Penalty, Setup, Vectors
from rayfl.algorithms.vectors import norm
from rayfl.training.batches import Minibatch
from rayfl.training.gradient import Oracle


@dataclass(frozen=True, kw_only=True)
class SGD:
    """The local optimiser, the same for every algorithm."""

    lr: float
    weight_decay: float
    max_norm: float | None
    """Clip each client's direction, or each of its gradients, to this L2 norm; None: no clipping."""

    def step_(self, x: Tensor, direction: Tensor, active: Tensor | None) -> None:
        """`x <- x - lr * (clip(direction) + weight_decay * x)` in place, `[C, P]`.

        The decay is taken at the unperturbed x and is not clipped. `active [C, 1]` is 1 for clients that
        take the step and 0 for those that stay; None: all take it.
        """
        if self.weight_decay:
            decay = self.lr * self.weight_decay
            x.mul_(1 - decay if active is None else 1 - decay * active)
        if self.max_norm is None:
            # Not addcmul: it rounds differently, and a stack would not equal its clients one at a time.
            x.add_(direction if active is None else direction * active, alpha=-self.lr)
            return
        scale = _clip_factor(direction, self.max_norm)
        x.addcmul_(direction, scale if active is None else scale * active, value=-self.lr)


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
    setup: Setup,
) -> Trained:
    """Train C clients from `start [P]` for `steps[i]` steps each; a finished client stays as it is."""
    max_gradient = sgd.max_norm if algorithm.clips_gradients else None
    if algorithm.clips_gradients:
        sgd = replace(sgd, max_norm=None)
    counts = torch.tensor(steps, device=start.device).unsqueeze(-1)
    ctx = ClientContext(
        start=start.expand(len(steps), -1),
        shared=shared,
        lr=sgd.lr,
        steps=counts.to(start.dtype),
        step=0,
        setup=setup,
    )
    # The iterate is this loop's own and changes in place: a new vector every step would double the traffic.
    x, total, passes = ctx.start.clone(), start.new_zeros(len(steps)), 0
    for k in range(max(steps)):
        batch, calls = minibatch(k), []

        def grad(
            at: Tensor,
            penalty: Penalty | None = None,
            batch: Minibatch = batch,
            calls: list[Tensor] = calls,
        ) -> Tensor:
            gradient, losses = oracle(at, batch, penalty)
            calls.append(losses)
            if max_gradient is not None:
                gradient = gradient * _clip_factor(gradient, max_gradient)
            return gradient

        direction, new_memory = algorithm.local_step(x, memory, grad, ctx._replace(step=k))
        running = sum(k < count for count in steps)
        passes += len(calls) * running
        losses = calls[0] if calls else torch.zeros_like(total)
        new_memory = {name: _apart(value, x) for name, value in new_memory.items()}
        if running == len(steps):
            active, memory, total = None, new_memory, total + losses
        else:
            active = (counts > k).to(x.dtype)  # [C, 1]
            memory = _where(counts > k, new_memory, memory)
            total = total + losses * active.squeeze(-1)
        sgd.step_(x, _apart(direction, x), active)
    uploads, memory = algorithm.upload(x.sub_(start), memory, ctx._replace(step=max(steps)))
    return Trained(uploads, memory, total / counts.squeeze(-1), passes)


def _clip_factor(v: Tensor, max_norm: float) -> Tensor:
    """`[C, P] -> [C, 1]`: what brings each row's norm down to `max_norm`, 1 where it is smaller."""
    return (max_norm / (norm(v) + 1e-6)).clamp_max(1.0)


def _apart(value: Tensor, x: Tensor) -> Tensor:
    """A vector that is the iterate itself, copied before the iterate moves on."""
    same = value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return value.clone() if same else value


def _where(active: Tensor, new: Vectors, old: Vectors) -> Vectors:
    return {
        name: value if value is old[name] else torch.where(active, value, old[name])
        for name, value in new.items()
    }
