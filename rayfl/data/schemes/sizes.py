"""Labels at random: equal sizes, or unequal ones."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.random import Generator
from pydantic import Field

from rayfl.data.partition import Groups, Labels, Owners, Scheme
from rayfl.data.schemes.dealing import deal_iid, equal_sizes


@dataclass(frozen=True, kw_only=True)
class IID(Scheme):
    """Equal sizes, labels at random."""

    def assign(self, labels: Labels, clients: int, rng: Generator, groups: Groups = None) -> Owners:
        return deal_iid(equal_sizes(len(labels), clients), rng)


@dataclass(frozen=True, kw_only=True)
class Quantity(Scheme):
    """Labels at random; sizes are log-normal, renormalised to n, and 1 at the least."""

    sigma: Annotated[
        float, Field(ge=0, description="standard deviation of the log of the sizes; 0 = equal")
    ] = 0.5

    def assign(self, labels: Labels, clients: int, rng: Generator, groups: Groups = None) -> Owners:
        logs = self.sigma * rng.standard_normal(clients)
        weights = np.exp(logs - logs.max())  # the largest is 1, so nothing overflows
        exact = weights / weights.sum() * (len(labels) - clients)
        sizes = 1 + exact.astype(np.int64)
        largest_remainders = np.argsort(np.floor(exact) - exact, kind="stable")
        sizes[largest_remainders[: len(labels) - sizes.sum()]] += 1
        return deal_iid(sizes, rng)
