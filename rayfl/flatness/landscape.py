"""The loss on planes through a point w.

Shapes: P parameters, K points, n x n grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rayfl.algorithms.base import TensorInfo
from rayfl.flatness.draws import generator
from rayfl.flatness.gaps import filter_directions
from rayfl.flatness.objective import Objective

# Points that go into one call.
AT_ONCE = 16


class Landscape(NamedTuple):
    """The loss on a grid of a plane; w is at (0, 0)."""

    x: np.ndarray
    """Coordinates along the first direction, `[n]`."""
    y: np.ndarray
    """Coordinates along the second direction, `[n]`."""
    losses: np.ndarray
    """`[n, n]`, a row for each y."""
    points: np.ndarray
    """Coordinates of points that belong to it, such as clients' last iterates, `[K, 2]`."""


def random_directions(w: Tensor, tensors: Sequence[TensorInfo]) -> Tensor:
    """Two random directions with the norms of w filter by filter, `[2, P]`: the same draws for every w.

    Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, arXiv:1712.09913, section 4: so
    planes of different networks can be compared. Biases and scales stay as they are.
    """
    drawn = torch.randn(2, len(w), generator=generator("landscape")).to(w)
    return filter_directions(drawn, w, tensors)


def principal_directions(moves: Tensor) -> Tensor:
    """The two orthonormal directions in which moves `[K, P]` from w are largest, `[2, P]`; K at least 2."""
    _, vectors = torch.linalg.eigh((moves @ moves.T).double())
    first = vectors.flip(1)[:, :2].T.to(moves) @ moves
    # Moves along one line have no second direction.
    return torch.nn.functional.normalize(first, dim=1)


def landscape(
    objective: Objective, directions: Tensor, extent: float, n: int, moves: Tensor
) -> Landscape:
    """The loss on an n x n grid up to `extent` either way, and the projections of `moves [K, P]` from w."""
    ticks = torch.linspace(-extent, extent, n, dtype=torch.double)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    grid = torch.stack([x.flatten(), y.flatten()], dim=1)
    losses = torch.cat([objective.losses(part, directions) for part in grid.split(AT_ONCE)])
    points = torch.linalg.lstsq(directions.T.double(), moves.T.double()).solution.T
    return Landscape(ticks.numpy(), ticks.numpy(), losses.view(n, n).numpy(), points.numpy())
