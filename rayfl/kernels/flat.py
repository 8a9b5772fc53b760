"""Arithmetic on flat vectors `[P]` or `[C, P]` that goes over memory once: C clients, P parameters."""

import torch
from torch import Tensor

from rayfl.kernels.switch import on


def difference_plus(
    u: Tensor, v: Tensor, a: float | Tensor, w: Tensor, b: float | Tensor
) -> Tensor:
    """`a (u - v) + b w`, a new vector in the shape of `u - v`; `a` and `b` are numbers or `[..., 1]`."""
    a, b = (f if isinstance(f, Tensor) else v.new_full((), f) for f in (a, b))
    if on(u, v, a, w, b):
        shape = torch.broadcast_shapes(u.shape, v.shape)
        if _is_flat(shape, u, v, w):
            from rayfl.kernels import triton_flat

            vectors = [_rows(t, shape) for t in (u, v, w)]
            factors = [_factors(f, shape) for f in (a, b)]
            out = torch.empty(shape, dtype=u.dtype, device=u.device)
            triton_flat.difference_plus(_rows(out, shape), *vectors, *factors)
            return out
    return (u - v).mul_(a).addcmul_(w, b)


def sgd_step_(
    x: Tensor, direction: Tensor, rate: Tensor, weight_decay: float, factor: Tensor | None
) -> Tensor:
    """`x <- x (1 - rate * weight_decay) - rate * factor * direction` in place; returns `x`.

    `rate` and `factor` are `[]` or `[..., 1]`; factor None stands for 1. `direction` shares no memory with
    `x`.
    """
    tensors = [x, direction, rate] + ([] if factor is None else [factor])
    if on(*tensors) and x.is_contiguous() and _is_flat(x.shape, x, direction):
        from rayfl.kernels import triton_flat

        rates = _factors(rate, x.shape), None if factor is None else _factors(factor, x.shape)
        vectors = _rows(x, x.shape), _rows(direction, x.shape)
        triton_flat.sgd_step_(*vectors, *rates, weight_decay)
        return x
    if weight_decay:
        x.mul_(1 - rate * weight_decay)
    if factor is not None:
        rate = rate * factor
    return x.addcmul_(direction, -rate)


def inverse_norm(v: Tensor, radius: float, tiny: float) -> Tensor:
    """`radius / ||v||`, and exactly 0 where `||v|| < tiny`; `[..., P] -> [..., 1]`."""
    if on(v) and _is_flat(v.shape, v):
        return _of_norm(v, radius, tiny)
    length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    inverse = torch.where(length < tiny, torch.zeros_like(length), 1 / length.clamp_min(tiny))
    return radius * inverse


def clip_factor(v: Tensor, clip_norm: float) -> Tensor:
    """Factor that brings each row's norm down to `clip_norm`, 1 if smaller; `[..., P] -> [..., 1]`."""
    if on(v) and _is_flat(v.shape, v):
        return _of_norm(v, clip_norm, None)
    length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return (clip_norm / (length + 1e-6)).clamp_max(1.0)


def _of_norm(v: Tensor, scale: float, tiny: float | None) -> Tensor:
    from rayfl.kernels import triton_norm

    out = v.new_empty(*v.shape[:-1], 1)
    triton_norm.of_norm(out.view(-1), _rows(v, v.shape), scale, tiny)
    return out


def _is_flat(shape: torch.Size, *vectors: Tensor) -> bool:
    """True if a kernel can read these in that shape: rows without gaps, which nobody differentiates by."""
    return (
        len(shape) in (1, 2)
        and shape.numel() > 0
        and all(v.shape[-1:] == shape[-1:] and v.stride(-1) == 1 for v in vectors)
        and not (torch.is_grad_enabled() and any(v.requires_grad for v in vectors))
    )


def _rows(vector: Tensor, shape: torch.Size) -> Tensor:
    """A view `[C, P]`; a row that all clients share has stride 0."""
    return vector.expand(shape).view(-1, shape[-1]) if len(shape) == 1 else vector.expand(shape)


def _factors(factor: Tensor, shape: torch.Size) -> Tensor:
    """A view `[C]` of one number for each row."""
    of_rows = factor.expand(*shape[:-1], 1)
    return of_rows.squeeze(-1) if len(shape) == 2 else of_rows
