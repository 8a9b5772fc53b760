"""Few classes at every client.

`shards` is McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv:1602.05629.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
from numpy.random import Generator
from pydantic import Field

from rayfl.data.partition import Groups, Labels, Owners, Scheme
from rayfl.data.schemes.dealing import by_class, deal, equal_sizes
from rayfl.errors import ConfigError

_CHUNK = 1024  # clients whose classes are drawn in one vectorised step
_SWEEPS = 100  # rounds of evening out the sizes in `pathological`; it stops earlier when even


@dataclass(frozen=True, kw_only=True)
class Pathological(Scheme):
    """Every client holds exactly c classes; sizes are as equal as that allows."""

    classes_per_client: Annotated[
        int, Field(ge=1, description="number of distinct classes c at every client")
    ] = 2

    @property
    def by_class(self) -> bool:
        return True

    def assign(self, labels: Labels, clients: int, rng: Generator, groups: Groups = None) -> Owners:
        class_sizes = np.bincount(labels)
        holders = self._holders(class_sizes, clients)
        holds = draw_class_sets(holders, self.classes_per_client, clients, rng)
        return deal(labels, _even_counts(holds, class_sizes, rng), rng)

    def _holders(self, class_sizes: np.ndarray, clients: int) -> np.ndarray:
        """Number of clients that hold each class, [C]: in proportion to its size, 1 at the least."""
        most = np.minimum(class_sizes, clients)  # a holder needs at least one sample
        total = self.classes_per_client * clients
        fewest = -(-len(class_sizes) // clients)
        key = "partition.classes_per_client"
        refuse = partial(ConfigError, key=key, value=self.classes_per_client)
        if not fewest <= self.classes_per_client <= len(class_sizes):
            raise refuse(
                f"with {len(class_sizes)} classes and {clients} clients it must be from "
                f"{fewest} (so that every class has a client) to {len(class_sizes)}"
            )
        if most.sum() < total:
            raise refuse(
                f"{clients} clients with that many classes need {total} (client, class) "
                f"pairs with a sample in each, the data allow {most.sum()}; lower "
                f"{key} or federation.clients",
                keys=("federation.clients",),
            )
        holders = np.clip(total * class_sizes // class_sizes.sum(), 1, most)
        while missing := total - holders.sum():  # what rounding and clipping left over
            step = np.sign(missing)
            possible = holders < most if step > 0 else holders > 1
            load = np.where(possible, step * class_sizes / holders, -np.inf)
            holders[load.argmax()] += step
        return holders


@dataclass(frozen=True, kw_only=True)
class Shards(Scheme):
    """The samples sorted by label, cut into equal shards; each client gets s of them."""

    shards_per_client: Annotated[int, Field(ge=1, description="number of shards s per client")] = 2

    @property
    def by_class(self) -> bool:
        return True

    def assign(self, labels: Labels, clients: int, rng: Generator, groups: Groups = None) -> Owners:
        shards = clients * self.shards_per_client
        if shards > len(labels):
            raise ConfigError(
                f"{clients} clients would "
                f"need {shards} shards but there are {len(labels)} samples; at most "
                f"{len(labels) // clients} is possible",
                key="partition.shards_per_client",
                value=self.shards_per_client,
            )
        owner_of_shard = rng.permutation(shards) // self.shards_per_client
        owner = np.empty(len(labels), dtype=np.int64)
        owner[by_class(labels, rng)] = np.repeat(owner_of_shard, equal_sizes(len(labels), shards))
        return owner


def draw_class_sets(
    holders: np.ndarray, per_client: int, clients: int, rng: Generator
) -> np.ndarray:
    """A random boolean [N, C] with `per_client` classes in each row, `holders` clients per column.

    Row by row, classes drawn in proportion to the holders they still lack. A class that lacks as
    many holders as there are rows left must be drawn; with that rule the draw never gets stuck.
    """
    lacking = holders.copy()
    holds = np.zeros((clients, len(holders)), dtype=bool)
    # The smallest of exponentials divided by weights = a weighted draw without replacement.
    races = rng.exponential(size=holds.shape)
    for first in range(0, clients, _CHUNK):
        race, drawn = races[first : first + _CHUNK], holds[first : first + _CHUNK]
        left = clients - first - np.arange(len(race))[:, None]  # rows
        while True:
            # All rows choose at once, from what the last pass chose for the rows above. Row k is final after
            # k + 1 passes; a row hardly changes what the next ones lack, so a few passes settle all.
            lacks = lacking - (np.cumsum(drawn, axis=0) - drawn)
            times = np.divide(race, lacks, where=lacks > 0, out=np.full(race.shape, np.inf))
            times[lacks == left] = -1.0
            again = np.zeros_like(drawn)
            chosen = np.argsort(times, axis=1, kind="stable")[:, :per_client]
            np.put_along_axis(again, chosen, True, axis=1)
            if (again == drawn).all():
                break
            drawn[:] = again
        lacking = lacking - drawn.sum(axis=0)
    return holds


def _even_counts(holds: np.ndarray, class_sizes: np.ndarray, rng: Generator) -> np.ndarray:
    """Samples per client and class, [N, C]: 1 or more where `holds`, client sizes near-equal.

    Each step spreads one class over its holders so that their sizes come out as level as possible.
    That lowers the sum of the squared sizes, so the sweeps over the classes end.
    """
    counts = holds.astype(np.int64)
    for k, class_size in enumerate(class_sizes):
        holding = rng.permutation(np.flatnonzero(holds[:, k]))
        counts[holding, k] = equal_sizes(class_size, len(holding))
    sizes = counts.sum(axis=1)
    for _ in range(_SWEEPS):
        before = (sizes**2).sum()
        for k, class_size in enumerate(class_sizes):
            holding = np.flatnonzero(holds[:, k])
            others = sizes[holding] - counts[holding, k]
            counts[holding, k] = raise_lowest(others, class_size)
            sizes[holding] = others + counts[holding, k]
        if (sizes**2).sum() == before:
            break
    return counts


def raise_lowest(heights: np.ndarray, amount: int) -> np.ndarray:
    """Spread `amount` units, at least one for each, so that they level the heights, like water poured in."""
    order = np.argsort(heights, kind="stable")
    low = heights[order] + 1
    water = amount - len(heights)
    # Filling up the first i columns to the height of column i takes `needed[i]`, which ascends.
    needed = low * np.arange(len(low)) - (np.cumsum(low) - low)
    wet = int(np.searchsorted(needed, water, side="right"))
    added = np.ones_like(heights)
    volume = low[:wet].sum() + water
    added[order[:wet]] += equal_sizes(volume, wet) - low[:wet]
    return added
