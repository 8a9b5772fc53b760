"""One model <-> one flat vector.

Parameters are one float vector `[P]`, float buffers (BatchNorm statistics) a second one `[Q]`. Weights
of 2-d convolutions lie in the flat vector in channels-last order, so that their views need no copy where
convolutions run channels-last.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rayfl.algorithms.base import TensorInfo


class Layout:
    """The order of a model's parameters and float buffers in their flat vectors."""

    def __init__(self, model: nn.Module):
        # Frozen parameters and integer buffers (a batch counter) stay in the model: they do not travel.
        self.parameters = _infos((n, p) for n, p in model.named_parameters() if p.requires_grad)
        self.buffers = _infos((n, b) for n, b in model.named_buffers() if b.is_floating_point())
        self.size = sum(info.size for info in self.parameters)

    def flatten(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The model's parameters `[P]` and float buffers `[Q]`, copied."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        return _gather(self.parameters, tensors), _gather(self.buffers, tensors)

    def load(self, model: nn.Module, w: Tensor, buffers: Tensor) -> None:
        """Write the flat vectors into `model`."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for infos, flat in ((self.parameters, w), (self.buffers, buffers)):
                for info in infos:
                    tensors[info.name].copy_(info.view(flat))


def views(infos: list[TensorInfo], flat: Tensor) -> dict[str, Tensor]:
    """Every tensor of `infos` as a view of `flat`."""
    return {info.name: info.view(flat) for info in infos}


def as_part(info: TensorInfo, value: Tensor) -> Tensor:
    """A tensor `[..., *shape]` in the order of its entries in the flat vector, `[..., size]`."""
    stack = value.shape[: value.dim() - len(info.shape)]
    if len(info.shape) == 4:
        value = value.movedim(-3, -1)
    return value.reshape(*stack, info.size)


def sha256(w: Tensor) -> str:
    """SHA-256 over the bytes of a flat vector, little-endian float32."""
    return hashlib.sha256(w.detach().cpu().numpy().astype("<f4").tobytes()).hexdigest()


def _infos(tensors: Iterable[tuple[str, Tensor]]) -> list[TensorInfo]:
    infos, offset = [], 0
    for name, tensor in tensors:
        infos.append(TensorInfo(name, tensor.shape, offset))
        offset += tensor.numel()
    return infos


def _gather(infos: list[TensorInfo], tensors: dict[str, Tensor]) -> Tensor:
    flat = torch.empty(sum(info.size for info in infos))
    for info in infos:
        info.view(flat).copy_(tensors[info.name].detach())
    return flat
