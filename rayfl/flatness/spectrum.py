"""Eigenvalues, trace and spectral density of the Hessian, from Hessian-vector products.

Shapes: P parameters, m steps of Lanczos, k vectors.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rayfl.flatness.gaps import AT_ONCE, Mean

# Residuals above this make a note. An eigenvalue apart from others is off by the square of its residual.
TOLERANCE = 0.05
# A vector below this, in units of the last place, is what rounding leaves once the space is exhausted.
EXHAUSTED = 10

Products = Callable[[Tensor], Tensor]
"""The matrix times each vector, `[k, P] -> [k, P]`."""


class Spectrum(NamedTuple):
    """The knowledge of m Lanczos steps about a symmetric matrix."""

    eigenvalues: np.ndarray
    """Ritz values, float64 `[m]`, descending; those at both ends converge first."""
    errors: np.ndarray
    """Residual ||H v - lambda v|| of each, `[m]`: the matrix has an eigenvalue that is as near as that."""
    weights: np.ndarray
    """Share of the spectrum that each stands for, `[m]`, sum 1: nodes of the density by quadrature."""
    vectors: Tensor
    """Ritz vectors of the largest, `[k, P]`, descending."""

    @property
    def residuals(self) -> np.ndarray:
        """Each error in parts of its eigenvalue, `[m]`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.errors > 0, self.errors / np.abs(self.eigenvalues), 0.0)


def lanczos(products: Products, start: Tensor, most: int, tops: int, tolerance: float) -> Spectrum:
    """Run Lanczos from `start [P]` for at most `most` steps, until the `tops` largest have converged.

    Converged: the residual is below `tolerance`; if tops > 1 that of the smallest eigenvalue too, relative to
    the largest. With full re-orthogonalisation, twice in each step (Parlett, "The Symmetric Eigenvalue
    Problem", 1998, section 6.9): without it what has converged comes back as ghosts.
    """
    most = min(most, len(start))
    basis = start.new_empty(most, len(start))
    basis[0] = start / start.norm()
    diagonal, beside = list[float](), list[float]()
    epsilon = torch.finfo(start.dtype).eps
    for m in range(1, most + 1):
        known = basis[:m]
        u = products(known[-1:])[0]
        diagonal.append(float(known[-1].double() @ u.double()))
        for _ in range(2):
            u = u - (known @ u) @ known
        rest = float(u.double().norm())
        values, vectors = _eigen(diagonal, beside)
        errors = rest * np.abs(vectors[-1])
        largest = np.abs(values).max()
        settled = (errors[:tops] < tolerance * np.abs(values[:tops])).all()
        if tops > 1:
            settled &= errors[-1] < tolerance * largest
        if m == most or rest <= EXHAUSTED * epsilon * largest or (settled and m >= 2 * tops):
            break
        beside.append(rest)
        basis[m] = u / rest
    top = torch.from_numpy(vectors[:, :tops].T.copy()).to(start) @ known
    return Spectrum(values, errors, vectors[0] ** 2, top)


def _eigen(diagonal: list[float], beside: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending, and vectors, as columns, of the tridiagonal matrix."""
    T = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(T)
    return values[::-1], vectors[:, ::-1]


def trace(products: Products, like: Tensor, draws: int, generator: torch.Generator) -> Mean:
    """Hutchinson's estimate: the mean of v' H v over Rademacher vectors, with its standard error."""
    forms = []
    for first in range(0, draws, AT_ONCE):
        shape = min(AT_ONCE, draws - first), len(like)
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
        v = signs.to(like).mul_(2).sub_(1)
        forms += (v.double() * products(v).double()).sum(-1).tolist()
    return Mean.of(forms)


def scaled(products: Products, scale: Tensor) -> Products:
    """Products with T H T, T = diag(`scale`): the Hessian in the scale-free geometry."""
    return lambda vectors: scale * products(scale * vectors)


def density(
    eigenvalues: np.ndarray, weights: np.ndarray, points: np.ndarray, width: float
) -> np.ndarray:
    """Spectral density at `points`: the quadrature's nodes, each as a Gaussian with this deviation.

    Stochastic Lanczos quadrature with one vector, as Yao et al., "PyHessian", 2020, arXiv:1912.07145.
    """
    distances = (points[:, None] - eigenvalues) / width
    bells = np.exp(-(distances**2) / 2) / (width * np.sqrt(2 * np.pi))
    return bells @ weights
