"""The rise of the loss within a distance rho of a point w: along the gradient, at worst, and on average.

Each comes in two geometries. The Euclidean one measures a perturbation e by its norm ||e||, the scale-free
one by ||e / |w|||, against the parameters that it changes: rescaling the layers of a network with ReLUs,
which changes ||w|| but not what the network computes, changes none of its numbers. Proximal terms and duals
change ||w||, so a comparison of methods needs both.

Shapes: P parameters.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rayfl.algorithms.base import TensorInfo
from rayfl.flatness.objective import Objective

ASCENT_STEPS = 10
# Length of a step of the ascent, in parts of rho: four steps cross the ball's radius, the others turn.
ASCENT_STEP = 0.25
# Vectors that go into one call: they share what it costs.
AT_ONCE = 4


class Mean(NamedTuple):
    """Mean over independent draws."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, draws: Sequence[float]) -> "Mean":
        """Return the mean of these draws, two at least."""
        return cls(statistics.fmean(draws), statistics.stdev(draws) / len(draws) ** 0.5)


@dataclass(frozen=True, eq=False)
class Geometry:
    """The size of a perturbation e: ||e / scale||, with `scale [P]` or 1."""

    scale: Tensor | float = 1.0

    @classmethod
    def scale_free(cls, w: Tensor) -> "Geometry":
        """The size against |w|, as adaptive sharpness has it (Kwon et al., ICML 2021, arXiv:2102.11600)."""
        return cls(w.abs())

    def steepest(self, gradient: Tensor) -> Tensor:
        """The perturbation of size 1 along which the loss rises fastest, T^2 g / ||T g||; 0 if g is 0."""
        scaled = self.scale * gradient
        return self.scale * scaled / scaled.norm().clamp_min(torch.finfo(scaled.dtype).tiny)

    def size(self, e: Tensor) -> Tensor:
        """||e / scale||; entries whose scale is 0 cannot be perturbed."""
        if not isinstance(self.scale, Tensor):
            return e.norm()
        return torch.where(self.scale > 0, e / self.scale, 0).norm()

    def gradient_norm(self, gradient: Tensor) -> float:
        """The slope along `steepest`, ||T g||."""
        return float((self.scale * gradient).norm())


EUCLIDEAN = Geometry()


def sam_gaps(
    objective: Objective, gradient: Tensor, rhos: Sequence[float], geometry: Geometry = EUCLIDEAN
) -> list[float]:
    """F(w + e) - F(w) for e of size rho along the gradient at w, `[P]`.

    Foret et al., ICLR 2021, arXiv:2010.01412, equation (2); scale-free as adaptive SAM with eta = 0.
    """
    direction = geometry.steepest(gradient).unsqueeze(0)
    losses = objective.losses(_column([0.0, *rhos]), direction)
    return (losses[1:] - losses[0]).tolist()


def worst_gaps(
    objective: Objective,
    gradient: Tensor,
    rhos: Sequence[float],
    geometry: Geometry = EUCLIDEAN,
    steps: int = ASCENT_STEPS,
) -> list[float]:
    """The largest F(w + e) - F(w) that projected ascent finds for e of size at most rho, for each rho.

    Normalised steps of rho / 4 from SAM's e, all samples in one batch; after Andriushchenko & Flammarion,
    ICML 2022, arXiv:2206.06232. A lower bound of the maximum, at least the gap that SAM's e has. The rhos
    ascend side by side.
    """
    if not rhos:
        return []
    e = torch.stack([rho * geometry.steepest(gradient) for rho in rhos])
    points = torch.cat([torch.zeros(1, len(rhos)), torch.eye(len(rhos))])
    middle = objective.losses(points[:1], e)[0].item()
    found: list[list[float]] = [[] for _ in rhos]
    for _ in range(steps):
        for i, (loss, uphill) in enumerate(objective.gradients(e)):
            found[i].append(loss)
            moved = e[i] + ASCENT_STEP * rhos[i] * geometry.steepest(uphill)
            e[i] = moved * (rhos[i] / geometry.size(moved)).clamp_max(1.0)
    ends = objective.losses(points[1:], e).tolist()
    return [max(*losses, end) - middle for losses, end in zip(found, ends, strict=True)]


def average_gap(objective: Objective, draw: Callable[[], Tensor], draws: int) -> Mean:
    """Mean of F(w + e) - F(w) over draws of e `[P]`, each with -e beside it: the slope cancels out."""
    rises = []
    for first in range(0, draws, AT_ONCE):
        noise = torch.stack([draw() for _ in range(min(AT_ONCE, draws - first))])
        every = torch.eye(len(noise))
        losses = objective.losses(torch.cat([0 * every[:1], every, -every]), noise)
        middle, there, opposite = losses.split([1, len(noise), len(noise)])
        rises += ((there + opposite) / 2 - middle).tolist()
    return Mean.of(rises)


def euclidean_noise(like: Tensor, rho: float, generator: torch.Generator) -> Tensor:
    """Normal noise with E||e||^2 = rho^2, `[P]`."""
    noise = torch.randn(len(like), generator=generator)
    return noise.mul_(rho / len(like) ** 0.5).to(like)


def filter_noise(
    w: Tensor, tensors: Sequence[TensorInfo], rho: float, generator: torch.Generator
) -> Tensor:
    """Normal noise with rho times the norm of each filter of w, `[P]`; rescaling a filter rescales it.

    Filters as Li et al., NeurIPS 2018, arXiv:1712.09913, have them: rows of a matrix, kernels of an output
    channel. Biases and scales stay as they are.
    """
    noise = torch.randn(1, len(w), generator=generator).to(w)
    return rho * filter_directions(noise, w, tensors)[0]


def filter_directions(directions: Tensor, w: Tensor, tensors: Sequence[TensorInfo]) -> Tensor:
    """The directions `[k, P]` with each filter scaled to the norm that it has in `w [P]`."""
    scaled = torch.zeros_like(directions)
    for info in tensors:
        if len(info.shape) > 1:
            filters = info.view(directions).flatten(2)  # [k, filters, entries]
            sizes = info.view(w).flatten(1).norm(dim=-1)
            norms = filters.norm(dim=-1).clamp_min(torch.finfo(w.dtype).tiny)
            rescaled = filters * (sizes / norms)[..., None]
            info.view(scaled).copy_(rescaled.view(len(directions), *info.shape))
    return scaled


def _column(coefficients: Sequence[float]) -> Tensor:
    return torch.tensor(coefficients).unsqueeze(1)
