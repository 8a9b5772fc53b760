"""Fused kernels for NVIDIA GPUs, each beside the plain PyTorch that computes the same.

They need Triton, which comes with PyTorch's builds for CUDA and takes its time to import: it is imported
when a process turns the kernels on, and never on a CPU. A kernel has fixed blocks and one order of sums, so
its bits are the same on every stream and in every process; PyTorch's are others, within rounding.
"""

from rayfl.kernels.checks import check, use
from rayfl.kernels.flat import clip_factor, difference_plus, inverse_norm, sgd_step_
from rayfl.kernels.group_norm import group_norm, with_group_norm
from rayfl.kernels.switch import on

__all__ = [
    "check",
    "clip_factor",
    "difference_plus",
    "group_norm",
    "inverse_norm",
    "on",
    "sgd_step_",
    "use",
    "with_group_norm",
]
