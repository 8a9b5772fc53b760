"""The arithmetic of local steps; all flat vectors, and evaluation, stay float32.

float32 is float32 everywhere: PyTorch's own default rounds the inputs of convolutions to TF32 on GPUs.
tf32 rounds the inputs of matrix products and convolutions on NVIDIA GPUs, and is float32 on CPUs.
bfloat16 is PyTorch's autocast: products and convolutions in bfloat16, sums that need it in float32.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


def forward_pass(precision: Precision, device: torch.device) -> torch.autocast:
    """Autocast context for differentiated forward passes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def local_arithmetic(precision: Precision) -> Iterator[None]:
    """Context of local steps: with TF32 if that was asked for, as it is not elsewhere."""
    if precision != "tf32":
        yield
        return
    before = bool(torch.backends.cuda.matmul.allow_tf32), torch.backends.cudnn.allow_tf32
    allow_tf32(True, True)
    try:
        yield
    finally:
        allow_tf32(*before)


def allow_tf32(products: bool, convolutions: bool) -> None:
    """Allow or forbid that float32 inputs are rounded to TF32 on GPUs.

    By the older of torch's two ways to say so: versions before 2.9 have no other, and torch.compile refuses
    to work in a process that has used the newer.
    """
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions


def in_effect(precision: Precision, device: torch.device) -> Precision:
    """Precision of local steps on that device: tf32 exists on GPUs only."""
    return "float32" if precision == "tf32" and device.type != "cuda" else precision
