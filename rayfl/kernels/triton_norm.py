"""Kernels for what depends on the norm of each row of `[C, P]`.

The first sums the squares of a row in at most PARTS programs, each of which takes blocks in turn; the second
adds the parts and computes what is wanted. Their number depends on P alone.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
PARTS = 1024


def of_norm(out: Tensor, rows: Tensor, scale: float, tiny: float | None) -> None:
    """Write `scale / norm`, 0 where the norm is below `tiny`, to `out [C]` for `rows [C, P]`.

    tiny None: write `min(1, scale / (norm + 1e-6))`, which clips the norm to `scale`.
    """
    count, size = rows.shape
    parts = min(PARTS, triton.cdiv(size, BLOCK))
    partial = rows.new_empty(count, parts)
    row = (
        0 if count == 1 else rows.stride(0)
    )  # 0 lets the compiler know that a single row is aligned
    with torch.cuda.device_of(rows):
        _squares[parts, count](rows, partial, size, row, parts, BLOCK=BLOCK)
        _finish[count,](
            *(partial, out, parts, float(scale), tiny or 0.0), CLIPS=tiny is None, PARTS=PARTS
        )


@triton.jit(do_not_specialize=["size", "parts"])
def _squares(rows, partial, size, row_stride, parts, BLOCK: tl.constexpr):
    part, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    rows += row * row_stride
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    whole = (size // BLOCK).to(tl.int64)  # blocks that need no mask
    for block in range(part, whole, parts):
        value = tl.load(rows + block * BLOCK + column)
        total += value * value
    if whole % parts == part:
        at = whole * BLOCK + column
        value = tl.load(rows + at, at < size, other=0.0)
        total += value * value
    tl.store(partial + row * parts + part, tl.sum(total, 0))


@triton.jit(do_not_specialize=["parts"])
def _finish(partial, out, parts, scale, tiny, CLIPS: tl.constexpr, PARTS: tl.constexpr):
    row, part = tl.program_id(0), tl.arange(0, PARTS)
    squares = tl.load(partial + row.to(tl.int64) * parts + part, part < parts, other=0.0)
    length = tl.sqrt_rn(tl.sum(squares, 0))
    if CLIPS:
        factor = scale / (length + 1e-6)
        factor = tl.where(factor > 1, 1.0, factor)
    else:
        factor = tl.where(length < tiny, 0.0, scale / length)
    tl.store(out + row, factor)
