"""The task of an experiment: the loss of a model's outputs, and how each sample is scored.

Outputs are rows of W numbers: the logits of a sample's class, or of the token at each of its positions (so
that a sample of L tokens is L rows), or the numbers that are predicted. Losses and the penalties of methods
see rows alone.

Shapes: C clients of a stack, B samples, L tokens, W logits or numbers, n rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rayfl.data.datasets import Kind
from rayfl.errors import ConfigError, reason
from rayfl.training.batches import Minibatch

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""`(outputs [n, W], targets) -> [n]`: the loss of each row; targets int64 `[n]`, or float `[n, W]`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Kind of the targets, outputs of a sample, and the loss."""

    kind: Kind = "classes"
    shape: tuple[int, ...] = ()
    """Shape of a sample's outputs: (W,), or (L, W) for tokens; () if nobody asks."""
    loss: LossFunction | None = None
    """One of the user's own; None: cross-entropy, or the squared error of numbers."""

    @property
    def usual(self) -> bool:
        """True if the loss is the cross-entropy of classes."""
        return self.kind == "classes" and self.loss is None

    def rows(self, outputs: Tensor) -> Tensor:
        """Rows of a model's outputs, `[..., B, L, W] -> [..., B * L, W]` for tokens."""
        return outputs.flatten(-3, -2) if self.kind == "tokens" else outputs

    def targets(self, targets: Tensor) -> Tensor:
        """Targets of the rows, `[..., B, L] -> [..., B * L]` for tokens."""
        return targets.flatten(-2) if self.kind == "tokens" else targets

    def batch(self, batch: Minibatch) -> Minibatch:
        """A minibatch whose targets and weights are those of rows; its inputs stay samples."""
        if self.kind != "tokens":
            return batch
        length, weights = self.shape[0], batch.weights
        if weights is not None:
            weights = (weights / length).repeat_interleave(length, -1)
        return Minibatch(batch.inputs, self.targets(batch.targets), weights)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, `[n]`."""
        if self.loss is not None:
            return self.loss(outputs, targets)
        if self.kind == "numbers":
            return (outputs - targets.to(outputs.dtype)).square().mean(-1)
        return F.cross_entropy(outputs, targets, reduction="none")

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of the rows."""
        if self.usual:
            return F.cross_entropy(outputs, targets)
        return self.losses(outputs, targets).mean()

    def summed(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss summed over samples, given outputs `[B, *shape]` and their targets; a sample's is a mean."""
        if self.usual:
            return F.cross_entropy(outputs, targets, reduction="sum")
        losses = self.losses(self.rows(outputs), self.targets(targets))
        return losses.sum() / (self.shape[0] if self.kind == "tokens" else 1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Score of each sample `[B]`: right, the share of tokens that are, or the squared error in all."""
        if self.kind == "numbers":
            return (outputs - targets.to(outputs.dtype)).square().sum(-1)
        right = outputs.argmax(-1) == targets
        return right if self.kind == "classes" else right.float().mean(-1)

    def check(self, name: str) -> None:
        """Raise ConfigError unless the user's own loss, called `name`, can be a loss."""
        if self.loss is None:
            return
        outputs = torch.linspace(-1, 1, 3 * self.shape[-1]).view(3, -1).requires_grad_()
        targets = (
            torch.zeros(3, self.shape[-1]) if self.kind == "numbers" else torch.tensor([0, 0, 1])
        )
        kept = outputs.detach().clone(), targets.clone()
        key = "federation.loss"
        try:
            with torch.enable_grad():
                losses = self.loss(outputs, targets)
                got = list(losses.shape)
                (slope,) = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
        except Exception as error:  # whatever the user's function raises
            raise ConfigError(
                f"fails on outputs {list(outputs.shape)} and targets {list(targets.shape)} ({reason(error)})",
                key=key,
                value=name,
            ) from error
        if got != [3]:
            problem = f"gives {got} for 3 rows of outputs; must give the loss of each, [3]"
        elif slope is None or not (slope.isfinite().all() and losses.isfinite().all()):
            problem = "gives no finite loss and gradient; it must be differentiable by the outputs"
        elif not (torch.equal(outputs, kept[0]) and torch.equal(targets, kept[1])):
            problem = "changes what it was given"
        else:
            return
        raise ConfigError(problem, key=key, value=name)


CLASSES = Task()
"""Cross-entropy of classes, of any number."""
