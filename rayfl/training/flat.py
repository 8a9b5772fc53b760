"""One model <-> one flat vector.

Parameters are one float vector `[P]`, float buffers (BatchNorm statistics) a second one `[Q]`. Weights
of 2-d convolutions lie in the flat vector in channels-last order, so that their views need no copy where
convolutions run channels-last.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Slot(NamedTuple):
    """Where one tensor of the model lies in the flat vector."""

    name: str
    shape: torch.Size
    offset: int

    def view(self, flat: Tensor) -> Tensor:
        """The tensor of the model as a view of `flat`, `[..., P] -> [..., *shape]`."""
        part = flat[..., self.offset : self.offset + self.shape.numel()]
        stack = flat.shape[:-1]
        if len(self.shape) == 4:
            out, into, height, width = self.shape
            return part.view(*stack, out, height, width, into).movedim(-1, -3)
        return part.view((*stack, *self.shape))


class Layout:
    """The order of a model's parameters and float buffers in their flat vectors."""

    def __init__(self, model: nn.Module):
        # Frozen parameters and integer buffers (a batch counter) stay in the model: they do not travel.
        self.parameters = _slots((n, p) for n, p in model.named_parameters() if p.requires_grad)
        self.buffers = _slots((n, b) for n, b in model.named_buffers() if b.is_floating_point())
        self.size = sum(slot.shape.numel() for slot in self.parameters)

    def flatten(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The model's parameters `[P]` and float buffers `[Q]`, copied."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        return _gather(self.parameters, tensors), _gather(self.buffers, tensors)

    def load(self, model: nn.Module, w: Tensor, buffers: Tensor) -> None:
        """Write the flat vectors into `model`."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for slots, flat in ((self.parameters, w), (self.buffers, buffers)):
                for slot in slots:
                    tensors[slot.name].copy_(slot.view(flat))

    def first_entries(self) -> Tensor:
        """Where the first T parameters in torch's own order lie in the flat vector, int64 `[T]`.

        T is the number of tensors. Torch's order is that of the parameters' `reshape(-1)`, one after another.
        """
        count = len(self.parameters)
        slots = [slot for slot in self.parameters if slot.offset < count]
        positions = torch.arange(slots[-1].offset + slots[-1].shape.numel())
        return torch.cat([slot.view(positions).reshape(-1) for slot in slots])[:count].clone()


def views(slots: list[Slot], flat: Tensor) -> dict[str, Tensor]:
    """Every tensor of `slots` as a view of `flat`."""
    return {slot.name: slot.view(flat) for slot in slots}


def sha256(w: Tensor) -> str:
    """SHA-256 over the bytes of a flat vector, little-endian float32."""
    return hashlib.sha256(w.detach().cpu().numpy().astype("<f4").tobytes()).hexdigest()


def _slots(tensors: Iterable[tuple[str, Tensor]]) -> list[Slot]:
    slots, offset = [], 0
    for name, tensor in tensors:
        slots.append(Slot(name, tensor.shape, offset))
        offset += tensor.numel()
    return slots


def _gather(slots: list[Slot], tensors: dict[str, Tensor]) -> Tensor:
    flat = torch.empty(sum(slot.shape.numel() for slot in slots))
    for slot in slots:
        slot.view(flat).copy_(tensors[slot.name].detach())
    return flat
