"""Arithmetic on flat vectors `[..., P]` that the algorithms share; it reduces over the last axis only.

What ends in `_` writes to its first vector, which must be the caller's own: each new vector of a large model
costs more than the arithmetic.
"""

import torch
from torch import Tensor

from rayfl import kernels
from rayfl.algorithms.step_number import StepNumber

# Below this norm a vector has no direction worth following (the papers' formulas would divide by 0).
TINY = 1e-12
ROW = 1024  # entries whose squares float32 adds up well


def norm(v: Tensor) -> Tensor:
    """Global L2 norm, `[..., P] -> [..., 1]`."""
    return torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def precise_norm(v: Tensor) -> Tensor:
    """Global L2 norm for a metric, float64, as fast as `norm`; `[..., P] -> [...]`.

    On a CPU `norm` is 0.04 % too small for 11 million entries, whose squares float32 adds up one by one.
    """
    whole = v.shape[-1] // ROW * ROW
    rows = torch.linalg.vector_norm(v[..., :whole].unflatten(-1, (-1, ROW)), dim=-1)
    rest = torch.linalg.vector_norm(v[..., whole:], dim=-1, keepdim=True)
    return torch.linalg.vector_norm(torch.cat([rows, rest], -1), dim=-1, dtype=torch.float64)


def scaled_to(v: Tensor, radius: float) -> Tensor:
    """`radius * v / ||v||`, and exactly 0 where `||v||` is below `TINY`; `[..., P] -> [..., P]`."""
    return v * _inverse_norm(v, radius)


def perturbed(v: Tensor, x: Tensor, radius: float) -> Tensor:
    """`x + scaled_to(v, radius)`, a new vector with the bits of `perturb_`; `[..., P]`."""
    return torch.addcmul(x, v, _inverse_norm(v, radius))


def perturb_(v: Tensor, x: Tensor, radius: float) -> Tensor:
    """`v <- x + scaled_to(v, radius)` in place; `[..., P]`."""
    return torch.addcmul(x, v, _inverse_norm(v, radius), out=v)


def scale_add_(g: Tensor, weight: float | Tensor, v: Tensor) -> Tensor:
    """`g <- weight * g + v` in place; `weight` is a number or `[..., 1]`."""
    return torch.addcmul(v, g, _factor(weight, g), out=g)


def difference_plus(
    u: Tensor, v: Tensor, a: float | Tensor, w: Tensor, b: float | Tensor
) -> Tensor:
    """`a (u - v) + b w`, a new vector `[..., P]`; `a` and `b` are numbers or `[..., 1]`."""
    return kernels.difference_plus(u, v, a, w, _factor(b, w))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity, 0 where either vector has no direction; `[..., P] -> [..., 1]`."""
    dot = torch.linalg.vecdot(a, b.expand_as(a), dim=-1).unsqueeze(-1)
    return dot * _inverse_norm(a) * _inverse_norm(b)


def _factor(weight: float | Tensor, v: Tensor) -> Tensor:
    if isinstance(weight, StepNumber):
        return weight.on(v)
    # Not add's `alpha` for a number: it rounds differently from a tensor.
    return weight if isinstance(weight, Tensor) else v.new_full((), weight)


def _inverse_norm(v: Tensor, radius: float = 1.0) -> Tensor:
    """`radius / ||v||`, and exactly 0 where `||v||` is below `TINY`; `[..., P] -> [..., 1]`."""
    return kernels.inverse_norm(v, radius, TINY)
