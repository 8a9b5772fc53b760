"""Kernels for group normalisation of channels-last maps: one program for each group of a sample.

A group is `[H W, D]` numbers of D = C / G channels, and a program takes a tile of it at a time. Most groups
of a ResNet are one tile, and few are more than the cache of a multiprocessor holds, so it is cheap to read
them again. A kernel is compiled for each width of its tile, in half a second, and not for each number
that it is called with.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 32
SAMPLES = 32


def forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised `x [N, C, H, W]`, and mean and 1 / standard deviation of each group `[N, G]`."""
    samples, channels, height, width = x.shape
    y = torch.empty_like(x, memory_format=torch.channels_last)
    mean, rstd = x.new_empty(2, samples, groups)
    tile, warps = _tile(height * width * (channels // groups))
    with torch.cuda.device_of(x):
        _forward[samples * groups,](
            *(x, weight, bias, y, mean, rstd),
            *(float(eps), height * width, channels, channels // groups, groups),
            ROWS=tile // COLUMNS,
            COLUMNS=COLUMNS,
            num_warps=warps,
        )
    return y, mean, rstd


def backward(
    dy: Tensor, x: Tensor, groups: int, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient by `x`, and each sample's part of those by weight and bias `[2, N, C]`."""
    samples, channels, height, width = x.shape
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    partial = x.new_empty(2, samples, channels)
    columns = triton.next_power_of_2(channels // groups)
    tile, warps = _tile(height * width * (channels // groups))
    with torch.cuda.device_of(x):
        _backward[samples * groups,](
            *(dy, x, weight, mean, rstd, dx, partial[0], partial[1]),
            *(height * width, channels, channels // groups, groups),
            ROWS=max(1, tile // columns),
            COLUMNS=columns,
            num_warps=warps,
        )
    return dx, partial


def summed(partial: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over samples of both halves of `[2, N, C]`, `[C]` each."""
    _, samples, channels = partial.shape
    sums = partial.new_empty(2, channels)
    with torch.cuda.device_of(partial):
        _sum[triton.cdiv(channels, COLUMNS), 2](
            *(partial, sums, samples, channels), ROWS=SAMPLES, COLUMNS=COLUMNS
        )
    return sums[0], sums[1]


def _tile(size: int) -> tuple[int, int]:
    """Numbers that a program takes at a time, and its warps: many for large groups, which would wait long."""
    return (2048, 4) if size <= 8192 else (8192, 16)


@triton.jit(
    do_not_specialize=["positions", "groups"],
    do_not_specialize_on_alignment=["mean", "rstd"],
)
def _forward(
    x,
    weight,
    bias,
    y,
    mean,
    rstd,
    eps,
    positions,
    channels,
    width,
    groups,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Rows of up to COLUMNS channels: a position has as many as it needs.
    group = tl.program_id(0)
    sample, offset = group // groups, group % groups * width
    start = sample.to(tl.int64) * positions * channels + offset
    x, y = x + start, y + start
    parts = tl.cdiv(width, COLUMNS)
    rows, count = parts * positions, (width * positions).to(tl.float32)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)

    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, rows, ROWS):
        position, channel = (first + row) // parts, (first + row) % parts * COLUMNS
        live = (first + row < rows)[:, None] & (channel[:, None] + column[None, :] < width)
        at = (position * channels + channel)[:, None] + column[None, :]
        total += tl.load(x + at, live, other=0.0)
    average = tl.sum(tl.sum(total, 1), 0) / count

    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, rows, ROWS):
        position, channel = (first + row) // parts, (first + row) % parts * COLUMNS
        live = (first + row < rows)[:, None] & (channel[:, None] + column[None, :] < width)
        at = (position * channels + channel)[:, None] + column[None, :]
        deviation = tl.where(live, tl.load(x + at, live, other=0.0) - average, 0.0)
        total += deviation * deviation
    scale = tl.rsqrt(tl.sum(tl.sum(total, 1), 0) / count + eps)
    tl.store(mean + group, average)
    tl.store(rstd + group, scale)

    for first in range(0, rows, ROWS):
        position, channel = (first + row) // parts, (first + row) % parts * COLUMNS
        own = channel[:, None] + column[None, :]
        live = (first + row < rows)[:, None] & (own < width)
        at = (position * channels + channel)[:, None] + column[None, :]
        normal = (tl.load(x + at, live, other=0.0) - average) * scale
        if weight is not None:
            normal *= tl.load(weight + offset + own, live, other=0.0)
        if bias is not None:
            normal += tl.load(bias + offset + own, live, other=0.0)
        tl.store(y + at, normal, live)


@triton.jit(
    do_not_specialize=["positions", "groups"],
    do_not_specialize_on_alignment=["mean", "rstd"],
)
def _backward(
    dy,
    x,
    weight,
    mean,
    rstd,
    dx,
    dweight,
    dbias,
    positions,
    channels,
    width,
    groups,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # y = w n + b with n = (x - mean) rstd, and m(.) the mean over the group:
    # dx = rstd (w dy - m(w dy) - n m(w dy n)), where both means are sums of what dbias and dweight are.
    group = tl.program_id(0)
    sample, offset = group // groups, group % groups * width
    start = sample.to(tl.int64) * positions * channels + offset
    dy, x, dx = dy + start, x + start, dx + start
    average, scale = tl.load(mean + group), tl.load(rstd + group)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    own = column < width

    with_normal = tl.zeros([ROWS, COLUMNS], tl.float32)
    alone = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, positions, ROWS):
        live = (first + row < positions)[:, None] & own[None, :]
        at = ((first + row) * channels)[:, None] + column[None, :]
        gradient = tl.load(dy + at, live, other=0.0)
        with_normal += gradient * ((tl.load(x + at, live, other=0.0) - average) * scale)
        alone += gradient
    of_weight, of_bias = tl.sum(with_normal, 0), tl.sum(alone, 0)
    at_channel = sample.to(tl.int64) * channels + offset + column
    tl.store(dweight + at_channel, of_weight, own)
    tl.store(dbias + at_channel, of_bias, own)

    factor = tl.full([COLUMNS], 1.0, tl.float32)
    if weight is not None:
        factor = tl.load(weight + offset + column, own, other=0.0)
    count = (width * positions).to(tl.float32)
    along = tl.sum(of_weight * factor, 0) / count
    common = tl.sum(of_bias * factor, 0) / count
    for first in range(0, positions, ROWS):
        live = (first + row < positions)[:, None] & own[None, :]
        at = ((first + row) * channels)[:, None] + column[None, :]
        normal = (tl.load(x + at, live, other=0.0) - average) * scale
        gradient = tl.load(dy + at, live, other=0.0) * factor[None, :]
        tl.store(dx + at, (gradient - common - normal * along) * scale, live)


@triton.jit(do_not_specialize=["samples"])
def _sum(partial, sums, samples, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    half = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    partial += half * samples * channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, samples, ROWS):
        live = (first + row < samples)[:, None] & (column < channels)[None, :]
        at = (first + row).to(tl.int64)[:, None] * channels + column[None, :]
        total += tl.load(partial + at, live, other=0.0)
    tl.store(sums + half * channels + column, tl.sum(total, 0), column < channels)
