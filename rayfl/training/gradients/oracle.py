"""The protocol of gradient oracles, and the base of those by autograd.

Shapes: C clients, B samples, P parameters.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rayfl.algorithms.base import Loss
from rayfl.training.batches import Minibatch
from rayfl.training.flat import as_part
from rayfl.training.function import Function
from rayfl.training.precision import Precision

CROSS_ENTROPY = Loss()  # or what else the task's loss is


class Oracle(Protocol):
    """Gradients of the mean loss at `x [C, P]` on `batch`: `([C, P], losses [C])`.

    What it returns as losses is the task's mean loss alone (cross-entropy), whatever `loss` has.
    """

    @property
    def stacks(self) -> bool:
        """True if several clients go into one call."""
        ...

    def __call__(
        self, x: Tensor, batch: Minibatch, loss: Loss = CROSS_ENTROPY
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(eq=False)
class Autograd:
    """Base of oracles by autograd: leaves that are views of the flat vector, and the way back."""

    function: Function
    precision: Precision = "float32"

    def _gradient(self, objective: Tensor, leaves: dict[str, Tensor], flat: Tensor) -> Tensor:
        """The objective's derivative by the leaves, `[..., P]` as `flat`."""
        tensors = torch.autograd.grad(
            objective, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        crops = self.function.ways.crops
        # Dead taps have no gradient.
        gradient = torch.zeros_like(flat) if crops else torch.empty_like(flat)
        places = self.function.places(gradient)
        rows: list[tuple[Tensor, Tensor]] = []  # whole tensors, as they lie in the flat vector
        for slot, tensor in zip(self.function.layout.parameters, tensors, strict=True):
            value = tensor.to_dense() if tensor.is_sparse else tensor
            if slot.name in crops:
                places[slot.name].copy_(value)
            else:
                rows.append((slot.part(gradient), as_part(slot, value)))
        # In as few kernels as can be: on a GPU sixty copies of a convnet take longer than the copying.
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [place for place, _ in rows], [value for _, value in rows]
        )
        return gradient


def client_mean(values: Tensor, batch: Minibatch) -> Tensor:
    """Mean over each client's samples or rows, `[C, B] -> [C]`."""
    return values.mean(-1) if batch.weights is None else (values * batch.weights).sum(-1)
