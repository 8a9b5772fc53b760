"""Local training: the one loop that every algorithm runs in.

Shapes: C clients of a stack, P parameters, K_i local steps of client i.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayfl import kernels
from rayfl.algorithms.base import (
    Algorithm,
    ClientContext,
    ExperimentInfo,
    Loss,
    Penalty,
    Vectors,
)
from rayfl.algorithms.noise import ClientNoise, unseeded
from rayfl.algorithms.step_number import StepNumber
from rayfl.training.batches import Minibatch
from rayfl.training.gradients import Oracle

if TYPE_CHECKING:
    from rayfl.training.cuda_graphs import GraphedSteps


@dataclass(frozen=True, kw_only=True)
class SGD:
    """The local optimiser, the same for every algorithm."""

    lr: float | Tensor  # a number, or a scalar tensor of the parameters' dtype and device
    weight_decay: float
    # Clip each client's direction, or each of its gradients, to this L2 norm; None: no clipping.
    clip_norm: float | None
    momentum: float = 0.0
    nesterov: bool = False

    def step_(
        self, x: Tensor, direction: Tensor, active: Tensor | None, velocity: Tensor | None = None
    ) -> None:
        """`x <- x - lr * (clip(direction) + weight_decay * x)` in place, `[C, P]`.

        The decay is taken at the unperturbed x and is not clipped. `active [C, 1]` is 1 for clients that
        take the step and 0 for those that stay; None: all take it. With momentum the step is that of
        `torch.optim.SGD`, and `velocity [C, P]` its buffer, which begins at 0.
        """
        lr = torch.as_tensor(self.lr, dtype=x.dtype, device=x.device)
        rate = lr if active is None else lr * active
        clip = self.clip_norm
        factor = None if clip is None else clip_factor(direction, clip)
        if velocity is None:
            kernels.sgd_step_(x, direction, rate, self.weight_decay, factor)
            return
        slope = x * self.weight_decay
        slope.addcmul_(direction, torch.ones_like(lr) if factor is None else factor)
        velocity.mul_(self.momentum).add_(slope)
        step = slope.add_(velocity, alpha=self.momentum) if self.nesterov else velocity
        kernels.sgd_step_(x, step, rate, 0.0, None)


@dataclass
class Stack:
    """C clients on their way through a round: all tensors that a local step reads and writes."""

    start: Tensor  # `[P]`
    shared: Vectors
    memory: Vectors
    lr: Tensor  # `[]`
    counts: Tensor  # K_i, int64 `[C, 1]`
    samples: Tensor  # n_i `[C, 1]`
    round: Tensor  # `[]`
    noise: ClientNoise | None  # None: whoever draws random numbers raises
    # The iterates `[C, P]`: the loop's own, for a new vector every step would double the traffic.
    x: Tensor = field(init=False)
    total: Tensor = field(init=False)  # `[C]`, sum of the losses so far
    velocity: Tensor | None = field(default=None, init=False)  # of SGD with momentum, `[C, P]`

    def __post_init__(self):
        self.x = self.start.expand(len(self.counts), -1)
        self.total = self.start.new_zeros(len(self.counts))

    def begin(self, step: "LocalStep") -> None:
        """Put each client where the algorithm lets it begin."""
        ctx = self.context(0, step.experiment)._replace(random=unseeded)
        self.x = step.algorithm.client_start(self.memory, ctx).clone()
        self.velocity = torch.zeros_like(self.x) if step.sgd.momentum else None

    def copy(self) -> "Stack":
        """A stack whose iterates, memory and losses are copies; what stays in a round is the same."""
        own = copy.copy(self)
        own.x, own.total, own.memory = self.x.clone(), self.total.clone(), cloned(self.memory)
        own.counts, own.samples = self.counts.clone(), self.samples.clone()
        own.velocity = None if self.velocity is None else self.velocity.clone()
        return own

    def context(
        self, k: int, info: ExperimentInfo, number: StepNumber | None = None
    ) -> ClientContext:
        """The algorithm's context at step k; `number`: the step's number while it is recorded."""
        return ClientContext(
            start=self.start.expand_as(self.x),
            shared=self.shared,
            lr=self.lr,
            steps=self.counts.to(self.start.dtype),
            step=k if number is None else number,  # pyright: ignore[reportArgumentType]
            round=self.round,
            experiment=info,
            samples=self.samples,
            random=self.noise.at(k) if self.noise else unseeded,
        )


@dataclass(frozen=True)
class Trained:
    """Results of a stack of clients."""

    uploads: Vectors  # `[C, P]` or `[C, 1]` each
    memory: Vectors
    # `[C]`, mean over the client's steps of the loss where the first gradient of a step was taken.
    losses: Tensor
    backward_passes: int


@dataclass(frozen=True)
class LocalStep:
    """One local step of a stack, whatever the algorithm."""

    algorithm: Algorithm
    oracle: Oracle
    sgd: SGD  # its `lr` is that of new stacks; a step takes its stack's
    experiment: ExperimentInfo

    def __call__(
        self,
        stack: Stack,
        batch: Minibatch,
        k: int,
        all_active: bool,
        number: StepNumber | None = None,
    ) -> int:
        """Take step k on `batch`, in place; returns the number of backward passes of each client.

        `all_active`: no client has finished; those that have stay as they are. `number`: k, if the step is
        to serve as others' too.
        """
        sgd, max_gradient, calls = replace(self.sgd, lr=stack.lr), None, []
        if self.algorithm.clips_gradients:
            sgd, max_gradient = replace(sgd, clip_norm=None), sgd.clip_norm

        def grad(
            at: Tensor,
            penalty: Penalty | None = None,
            /,
            *,
            cross_entropy: bool = True,
            samples: int | None = None,
        ) -> Tensor:
            if penalty is None and not cross_entropy:
                raise ValueError("grad(x, cross_entropy=False) needs a penalty: there is no loss")
            if samples is not None and samples < 1:
                raise ValueError(f"grad(x, samples={samples}) needs one sample at least")
            gradient, losses = self.oracle(at, batch, Loss(penalty, cross_entropy, samples))
            calls.append(losses)
            if max_gradient is not None:
                gradient = gradient * clip_factor(gradient, max_gradient)
            return gradient

        x = stack.x
        ctx = stack.context(k, self.experiment, number)
        direction, memory = self.algorithm.local_step(x, stack.memory, grad, ctx)
        memory = {name: _apart(value, x) for name, value in memory.items()}
        losses = calls[0] if calls else torch.zeros_like(stack.total)
        active = None
        if not all_active:
            takes_part = stack.counts > (k if number is None else number.on(stack.counts))
            active = takes_part.to(x.dtype)  # [C, 1]
            memory = _where(takes_part, memory, stack.memory)
            losses = losses * active.squeeze(-1)
        stack.memory = memory
        stack.total += losses
        sgd.step_(x, _apart(direction, x), active, stack.velocity)
        return len(calls)


class Training:
    """A stack on its way from `start [P]` through K_i = `steps[i]` steps of each client.

    A client that has finished stays as it is.
    """

    def __init__(
        self,
        step: LocalStep,
        minibatch: Callable[[int], Minibatch],
        start: Tensor,
        shared: Vectors,
        memory: Vectors,
        steps: list[int],
        graphed: "GraphedSteps | None" = None,
        noise: ClientNoise | None = None,
        round: int = 1,
        samples: Sequence[int] = (1,),
    ):
        """`samples`: n_i of each client, or one number for all."""
        lr, number, own = (
            torch.as_tensor(value, dtype=start.dtype, device=start.device)
            for value in (step.sgd.lr, round, samples)
        )
        counts = torch.tensor(steps, device=start.device).unsqueeze(-1)
        own = own.expand(len(steps)).unsqueeze(-1)
        stack = Stack(start, shared, memory, lr, counts, own, number, noise)
        stack.begin(step)
        self._step, self._minibatch, self._steps = step, minibatch, steps
        self._graphed, self._passes = graphed, 0
        self.stack = stack if graphed is None else graphed.hold(stack)

    def take(self, k: int) -> None:
        """Take step k; one after the other, up to the largest K_i."""
        take = self._step if self._graphed is None else self._graphed
        running = sum(k < count for count in self._steps)
        passes = take(self.stack, self._minibatch(k), k, running == len(self._steps))
        self._passes += running * passes

    def run(self) -> Trained:
        """Take all steps, and finish."""
        for k in range(max(self._steps)):
            self.take(k)
        return self.finish()

    def finish(self) -> Trained:
        """The stack's results, once all steps are taken; it cannot be used after that."""
        stack = self.stack
        if self._graphed is not None:
            stack = stack.copy()  # the next stack overwrites the held one
        ctx = stack.context(max(self._steps), self._step.experiment)
        delta = stack.x.sub_(stack.start)
        uploads, memory = self._step.algorithm.upload(delta, stack.memory, ctx)
        return Trained(uploads, memory, stack.total / stack.counts.squeeze(-1), self._passes)


def cloned(vectors: Vectors) -> Vectors:
    """A copy of each vector."""
    return {name: value.clone() for name, value in vectors.items()}


def clip_factor(v: Tensor, clip_norm: float) -> Tensor:
    """`[C, P] -> [C, 1]`: what brings each row's norm down to `clip_norm`, 1 where it is smaller."""
    return kernels.clip_factor(v, clip_norm)


def _apart(value: Tensor, x: Tensor) -> Tensor:
    """A vector that is the iterate itself, copied before the iterate moves on."""
    same = value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return value.clone() if same else value


def _where(active: Tensor, new: Vectors, old: Vectors) -> Vectors:
    return {
        name: value if value is old[name] else torch.where(active, value, old[name])
        for name, value in new.items()
    }
