"""Kernels for flat vectors `[C, P]`: one program for each block of a row.

Whole blocks need no mask, and are read 16 bytes at a time where their rows are aligned.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def difference_plus(out: Tensor, u: Tensor, v: Tensor, w: Tensor, a: Tensor, b: Tensor) -> None:
    """`out <- a (u - v) + b w`; vectors `[C, P]`, factors `[C]`."""
    tensors = out, u, v, w, a, b
    with torch.cuda.device_of(out):
        _difference_plus[_grid(out)](*tensors, out.shape[1], *map(_stride, tensors), BLOCK=BLOCK)


def sgd_step_(
    x: Tensor, direction: Tensor, rate: Tensor, factor: Tensor | None, weight_decay: float
) -> None:
    """`x <- x (1 - rate * weight_decay) - rate * factor * direction`; vectors `[C, P]`, factors `[C]`."""
    clips = factor is not None
    tensors = x, direction, rate, factor if clips else rate
    with torch.cuda.device_of(x):
        _sgd_step[_grid(x)](
            *tensors,
            float(weight_decay),
            x.shape[1],
            *map(_stride, tensors),
            CLIPS=clips,
            BLOCK=BLOCK,
        )


def _grid(rows: Tensor) -> tuple[int, int]:
    return triton.cdiv(rows.shape[1], BLOCK), rows.shape[0]


def _stride(rows: Tensor) -> int:
    """Distance of one row from the next: 0 for a single one, which lets the compiler know it is aligned."""
    return 0 if rows.shape[0] == 1 else rows.stride(0)


@triton.jit(do_not_specialize=["size", "a_row", "b_row"])
def _difference_plus(
    out, u, v, w, a, b, size, out_row, u_row, v_row, w_row, a_row, b_row, BLOCK: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    out, u, v, w = out + row * out_row, u + row * u_row, v + row * v_row, w + row * w_row
    weight, other = tl.load(a + row * a_row), tl.load(b + row * b_row)
    if first + BLOCK <= size:
        difference = tl.load(u + at) - tl.load(v + at)
        tl.store(out + at, difference * weight + tl.load(w + at) * other)
    else:
        live = at < size
        difference = tl.load(u + at, live) - tl.load(v + at, live)
        tl.store(out + at, difference * weight + tl.load(w + at, live) * other, live)


@triton.jit(do_not_specialize=["size", "rate_row", "factor_row"])
def _sgd_step(
    x,
    direction,
    rate,
    factor,
    weight_decay,
    size,
    x_row,
    direction_row,
    rate_row,
    factor_row,
    CLIPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    x, direction = x + row * x_row, direction + row * direction_row
    step = tl.load(rate + row * rate_row)
    kept = 1 - step * weight_decay
    if CLIPS:
        step = step * tl.load(factor + row * factor_row)
    if first + BLOCK <= size:
        tl.store(x + at, tl.load(x + at) * kept - tl.load(direction + at) * step)
    else:
        live = at < size
        moved = tl.load(x + at, live) * kept - tl.load(direction + at, live) * step
        tl.store(x + at, moved, live)
