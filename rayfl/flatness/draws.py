"""Random numbers of measurements: the same for every point, so that points are compared along the same."""

from typing import Literal

import torch
from torch import Tensor

from rayfl import seeds

Purpose = Literal["noise", "lanczos", "trace", "landscape"]
# The numbers are part of every measurement: never renumber, only append.
_PURPOSES: dict[Purpose, int] = {"noise": 1, "lanczos": 2, "trace": 3, "landscape": 4}


def generator(purpose: Purpose) -> torch.Generator:
    """The stream of this purpose, from its beginning."""
    return torch.Generator().manual_seed(seeds.integer(0, "flatness", _PURPOSES[purpose]))


def lanczos_start(like: Tensor) -> Tensor:
    """A random vector that Lanczos starts from, `[P]`."""
    return torch.randn(len(like), generator=generator("lanczos")).to(like)
