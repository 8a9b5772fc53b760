"""The arithmetic of local steps; all flat vectors, and evaluation, stay float32.

float32 is float32 everywhere: PyTorch's own default rounds the inputs of convolutions to TF32 on GPUs.
tf32 rounds the inputs of matrix products and convolutions on NVIDIA GPUs, and is float32 on CPUs.
bfloat16 is PyTorch's autocast: products and convolutions in bfloat16, sums that need it in float32.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]

# torch's type hints do not know these documented settings.
_products: Any = torch.backends.cuda.matmul
_convolutions: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]


def forward_pass(precision: Precision, device: torch.device) -> torch.autocast:
    """Autocast context for differentiated forward passes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def local_steps(precision: Precision) -> Iterator[None]:
    """Context of local steps: with TF32 if that was asked for, as it is not elsewhere."""
    if precision != "tf32":
        yield
        return
    before = _products.fp32_precision, _convolutions.fp32_precision
    round_inputs("tf32", "tf32")
    try:
        yield
    finally:
        round_inputs(*before)


def round_inputs(products: str, convolutions: str) -> None:
    """Set the rounding of float32 inputs on GPUs: "tf32" rounds them, "ieee" does not."""
    _products.fp32_precision = products
    _convolutions.fp32_precision = convolutions


def in_effect(precision: Precision, device: torch.device) -> Precision:
    """Precision of local steps on that device: tf32 exists on GPUs only."""
    return "float32" if precision == "tf32" and device.type != "cuda" else precision
