"""The switch: does this process compute with the kernels?"""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

_where: str | None = None  # the type of device that has the kernels on


def on(*tensors: Tensor) -> bool:
    """True if the kernels are on and take all of these: float32, on a GPU."""
    return _where is not None and all(
        t.dtype is torch.float32 and t.device.type == _where for t in tensors
    )


def turn_on(device: torch.device) -> None:
    """Let the kernels compute what lies on such a device from now on."""
    global _where
    _where = device.type


@contextlib.contextmanager
def turned_on(device: torch.device) -> Iterator[None]:
    """Context in which the kernels are on."""
    global _where
    before, _where = _where, device.type
    try:
        yield
    finally:
        _where = before


def interpreted() -> bool:
    """True if Triton runs kernels on the CPU, as its interpreter does for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
