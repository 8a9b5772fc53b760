"""The model's tensors and their places in the flat vector."""

from typing import NamedTuple

import torch
from torch import Tensor


class TensorInfo(NamedTuple):
    """One tensor of the model and its place in the flat vector."""

    name: str
    """PyTorch's name of it, such as "0.weight"."""
    shape: torch.Size
    offset: int
    """Position of its first entry in the flat vector."""

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape.numel()

    def part(self, flat: Tensor) -> Tensor:
        """Its entries in `flat`, `[..., P] -> [..., size]`."""
        return flat[..., self.offset : self.offset + self.size]

    def view(self, flat: Tensor) -> Tensor:
        """The tensor as a view of `flat`, `[..., P] -> [..., *shape]`.

        Kernels of 2-d convolutions lie in memory channels last; their views have PyTorch's order.
        """
        part, stack = self.part(flat), flat.shape[:-1]
        if len(self.shape) == 4:
            out, into, height, width = self.shape
            return part.view(*stack, out, height, width, into).movedim(-1, -3)
        return part.view((*stack, *self.shape))

    def matrix(self, flat: Tensor) -> Tensor:
        """The tensor as a matrix, a view of `flat`: its first dimension by all others.

        `[..., P] -> [..., rows, columns]`.

        The columns of a kernel come as they lie in memory, channels last, and not in PyTorch's order. A
        vector has one column, a scalar one entry.
        """
        rows = self.shape[0] if self.shape else 1
        return self.part(flat).unflatten(-1, (rows, -1))
