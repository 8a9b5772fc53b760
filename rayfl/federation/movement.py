"""The model's movement from round to round: size and direction of the cohort's mean update.

Legend: D_i = the upload `delta` of client i, D = its mean over the cohort, D' = that of the round before,
p = what the global momentum adds (`Algorithm.global_momentum`), as the round's clients were given it.

    update/norm          ||D||
    update/agreement     ||D|| over the mean of ||D_i||: 1 if all clients agree, 1 / sqrt(S) if the updates of
                         S clients are orthogonal and equally long
    update/cos_previous  cos(D, D'): negative if the cohort goes back where the last one came from
    update/cos_momentum  cos(D, p): 1 if the cohort moves where the momentum points

A cosine with a vector that has no direction is left out, as is the share of a mean norm of 0. Where the
momentum is the last mean update (FedCM, FedWMSAM) the two cosines are one.

D starts where the clients start, which is not w for methods that look ahead.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rayfl.algorithms.vectors import TINY

# Entries that are summed in float32. BLAS takes more threads for longer vectors, and their number is then in
# the last bits.
ROW = 4096
# Entries of each vector that are read once for all products: 1 MB, which the cache holds.
BLOCK = 64 * ROW


class Movement:
    """The mean update of the last round, and metrics of the next."""

    def __init__(self, last: Tensor | None = None):
        self.last = last
        """D', `[P]`; None before the first round."""

    def metrics(self, delta: Tensor, momentum: Tensor | None, drift: float) -> dict[str, float]:
        """Metrics of the round with the mean update `delta`, which is the last one from now on.

        `drift`: mean ||D_i||.
        """
        others = {"previous": self.last, "momentum": momentum}
        given = {name: vector for name, vector in others.items() if vector is not None}
        pairs = [(delta, delta)]
        for vector in given.values():
            pairs += [(vector, vector), (delta, vector)]
        squares, *products = inner_products(pairs)
        size = math.sqrt(squares)
        found = {"update/norm": size}
        if drift > 0:
            found["update/agreement"] = size / drift
        for name, squares, product in zip(given, products[::2], products[1::2], strict=True):
            norm = math.sqrt(squares)
            # The squares of a vector may be infinite whose numbers are finite.
            if TINY < size < math.inf and TINY < norm < math.inf:
                cosine = product / size / norm
                found[f"update/cos_{name}"] = max(-1.0, min(1.0, cosine))  # but for rounding
        self.last = delta
        return found


def inner_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Inner products of vectors `[P]`, each vector read from memory once; the same bits on any threads.

    Rows of `ROW` entries are summed in float32, and these sums in float64.
    """
    arrays = [(a.numpy(), b.numpy()) for a, b in pairs]
    sums = [0.0] * len(pairs)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinity is the caller's to see
        for first in range(0, len(arrays[0][0]), BLOCK):
            block = slice(first, first + BLOCK)
            for i, (a, b) in enumerate(arrays):
                sums[i] += _inner_product(a[block], b[block])
    return sums


def _inner_product(a: np.ndarray, b: np.ndarray) -> float:
    whole = len(a) // ROW * ROW
    rows = np.vecdot(a[:whole].reshape(-1, ROW), b[:whole].reshape(-1, ROW))
    return float(rows.sum(dtype=np.float64)) + float(np.dot(a[whole:], b[whole:]))
