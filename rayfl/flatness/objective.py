"""The protocol of a loss whose flatness is measured.

Shapes: P parameters, k points or vectors, j directions.
"""

from typing import Protocol

from torch import Tensor


class Objective(Protocol):
    """A loss F around a point w: the mean over fixed samples, so that a call again gives the same."""

    @property
    def w(self) -> Tensor:
        """The point, `[P]`."""
        ...

    def losses(self, coefficients: Tensor, directions: Tensor) -> Tensor:
        """F(w + coefficients @ directions), float64 `[k]`, given `[k, j]` and `[j, P]`."""
        ...

    def gradient(self, offset: Tensor | None = None) -> tuple[float, Tensor]:
        """F and its gradient `[P]` at w + offset `[P]`, or at w."""
        ...

    def gradients(self, offsets: Tensor) -> list[tuple[float, Tensor]]:
        """The result of `gradient` at each of the offsets `[k, P]`."""
        ...

    def products(self, vectors: Tensor) -> Tensor:
        """The Hessian of F at w times each vector, `[k, P] -> [k, P]`."""
        ...
