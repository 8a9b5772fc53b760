"""How the training samples are spread over the clients.

Every scheme is a true partition: each sample belongs to exactly one client and no client is empty.
A scheme therefore returns one number per sample, its owner.

Shapes: n training samples, N clients, C classes.

Sources: `dirichlet` is the per-client class prior of the FedWMSAM and FedNSAM code without its
re-use of samples; `dirichlet_per_class` is Li et al., "Federated Learning on Non-IID Data Silos",
ICDE 2022, arXiv:2102.02079; `shards` is McMahan et al., "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from rayfl.errors import ConfigError
from rayfl.seeds import generator

_CHUNK = 2048  # samples drawn in one vectorised step of `dirichlet`
_ATTEMPTS = 200  # draws of `dirichlet_per_class` before it gives up
_SWEEPS = 100  # rounds of evening out the sizes in `pathological`; it stops earlier when even


@dataclass(frozen=True, eq=False)
class Partition:
    """Sample indices by client: client 0's in ascending order, then client 1's, and so on."""

    indices: np.ndarray  # int64 [n]
    offsets: np.ndarray  # int64 [N + 1]: client i owns indices[offsets[i]:offsets[i + 1]]

    def client(self, i: int) -> np.ndarray:
        """The sample indices of client `i`."""
        return self.indices[self.offsets[i] : self.offsets[i + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """The number of samples of each client, [N]."""
        return np.diff(self.offsets)

    def histogram(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """The number of samples of each class at each client, [N, C]."""
        clients = len(self.offsets) - 1
        owner = np.repeat(np.arange(clients), self.sizes)
        cells = np.bincount(
            owner * num_classes + labels[self.indices], minlength=clients * num_classes
        )
        return cells.reshape(clients, num_classes)

    def digest(self) -> str:
        """SHA-256 that is equal if and only if the partition is equal, on every machine."""
        content = self.indices.astype("<i8").tobytes() + self.offsets.astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """A rule that gives every sample an owner."""

    @abstractmethod
    def assign(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        """The owner, 0..clients-1, of each sample, int64 [n]; each of 0..C-1 is in `labels`."""


@dataclass(frozen=True, kw_only=True)
class IID(Scheme):
    """Equal sizes, labels at random."""

    def assign(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        return _deal_iid(_equal_sizes(len(labels), clients), rng)


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Scheme):
    """Equal sizes; each client has its own class prior p_i ~ Dir(alpha)."""

    alpha: Annotated[
        float, Field(gt=0, description="Dirichlet concentration; small = skewed, large = IID")
    ] = 0.1

    def assign(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        """Fill the clients in random order, so that none is left with the leftovers of the others.

        A class that has run out is masked, and the client's prior renormalised over the rest.
        """
        left = np.bincount(labels)
        priors = rng.dirichlet(np.full(len(left), self.alpha), size=clients)  # [N, C]
        slots = rng.permutation(np.repeat(np.arange(clients), _equal_sizes(len(labels), clients)))
        uniforms = rng.random(len(slots))
        counts = np.zeros(priors.shape, dtype=np.int64)
        start = 0
        while start < len(slots):
            owners = slots[start : start + _CHUNK]
            classes = _draw_classes(priors[owners], left > 0, uniforms[start : start + _CHUNK])
            # Which classes are masked changes only where a class runs out: keep the draws up to
            # there, and draw the others again.
            taken = (classes[:, None] == np.arange(len(left))).cumsum(axis=0)
            emptied = ((taken == left) & (left > 0)).any(axis=1)
            kept = int(emptied.argmax()) + 1 if emptied.any() else len(owners)
            np.add.at(counts, (owners[:kept], classes[:kept]), 1)
            left = left - taken[kept - 1]
            start += kept
        return _deal(labels, counts, rng)


@dataclass(frozen=True, kw_only=True)
class DirichletPerClass(Scheme):
    """Unequal sizes; each class is spread over the clients by proportions ~ Dir(alpha)."""

    alpha: Annotated[
        float, Field(gt=0, description="Dirichlet concentration; small = skewed, large = IID")
    ] = 0.1
    min_samples: Annotated[
        int, Field(ge=1, description="draw again until every client has this many samples")
    ] = 10

    def assign(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        key = f"partition.min_samples = {self.min_samples}"
        if self.min_samples * clients > len(labels):
            raise ConfigError(
                f"{key}: {clients} clients would need {self.min_samples * clients} samples but "
                f"there are {len(labels)}; at most {len(labels) // clients} is possible"
            )
        for _ in range(_ATTEMPTS):
            counts = self._draw(np.bincount(labels), clients, rng)
            if counts.sum(axis=1).min() >= self.min_samples:
                return _deal(labels, counts, rng)
        raise ConfigError(
            f"partition.alpha = {self.alpha}, {key}: in {_ATTEMPTS} draws some client always had "
            f"fewer samples; raise partition.alpha, lower partition.min_samples or "
            f"federation.clients ({clients}), or use partition.name=dirichlet (equal sizes)"
        )

    def _draw(
        self, class_sizes: np.ndarray, clients: int, rng: np.random.Generator
    ) -> np.ndarray:  # [N, C]
        counts = np.zeros((clients, len(class_sizes)), dtype=np.int64)
        sizes = np.zeros(clients, dtype=np.int64)
        for k, class_size in enumerate(class_sizes):
            unfilled = sizes * clients < class_sizes.sum()  # a client with n / N gets no more
            shares = rng.dirichlet(np.full(clients, self.alpha)) * unfilled
            # A small alpha can give everything to clients that are already full.
            shares = np.cumsum(shares if shares.any() else unfilled)
            cuts = (shares / shares[-1] * class_size).astype(np.int64)
            counts[:, k] = np.diff(cuts, prepend=0)
            sizes += counts[:, k]
        return counts


@dataclass(frozen=True, kw_only=True)
class Pathological(Scheme):
    """Every client holds exactly c classes; sizes are as equal as that allows."""

    classes_per_client: Annotated[
        int, Field(ge=1, description="number of distinct classes c at every client")
    ] = 2

    def assign(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        class_sizes = np.bincount(labels)
        holders = self._holders(class_sizes, clients)
        holds = _draw_class_sets(holders, self.classes_per_client, clients, rng)
        return _deal(labels, _even_counts(holds, class_sizes, rng), rng)

    def _holders(self, class_sizes: np.ndarray, clients: int) -> np.ndarray:
        """How many clients hold each class, [C]: in proportion to its size, 1 at the least."""
        most = np.minimum(class_sizes, clients)  # a holder needs at least one sample
        total = self.classes_per_client * clients
        fewest = -(-len(class_sizes) // clients)
        key = f"partition.classes_per_client = {self.classes_per_client}"
        if not fewest <= self.classes_per_client <= len(class_sizes):
            raise ConfigError(
                f"{key}: with {len(class_sizes)} classes and {clients} clients it must be from "
                f"{fewest} (so that every class has a client) to {len(class_sizes)}"
            )
        if most.sum() < total:
            raise ConfigError(
                f"{key}: {clients} clients with that many classes need {total} (client, class) "
                f"pairs with a sample in each, the data allow {most.sum()}; lower "
                "partition.classes_per_client or federation.clients"
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

    def assign(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        shards = clients * self.shards_per_client
        if shards > len(labels):
            raise ConfigError(
                f"partition.shards_per_client = {self.shards_per_client}: {clients} clients would "
                f"need {shards} shards but there are {len(labels)} samples; at most "
                f"{len(labels) // clients} is possible"
            )
        owner_of_shard = rng.permutation(shards) // self.shards_per_client
        owner = np.empty(len(labels), dtype=np.int64)
        owner[_by_class(labels, rng)] = np.repeat(owner_of_shard, _equal_sizes(len(labels), shards))
        return owner


@dataclass(frozen=True, kw_only=True)
class Quantity(Scheme):
    """Labels at random; sizes are log-normal, renormalised to n, and 1 at the least."""

    sigma: Annotated[
        float, Field(ge=0, description="standard deviation of the log of the sizes; 0 = equal")
    ] = 0.5

    def assign(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        logs = self.sigma * rng.standard_normal(clients)
        weights = np.exp(logs - logs.max())  # the largest is 1, so nothing overflows
        exact = weights / weights.sum() * (len(labels) - clients)
        sizes = 1 + exact.astype(np.int64)
        largest_remainders = np.argsort(np.floor(exact) - exact, kind="stable")
        sizes[largest_remainders[: len(labels) - sizes.sum()]] += 1
        return _deal_iid(sizes, rng)


SCHEMES: dict[str, type[Scheme]] = {
    "iid": IID,
    "dirichlet": Dirichlet,
    "dirichlet_per_class": DirichletPerClass,
    "pathological": Pathological,
    "shards": Shards,
    "quantity": Quantity,
}


def split(scheme: Scheme, labels: np.ndarray, clients: int, seed: int) -> Partition:
    """Spread the samples with these labels over the clients. Only `seed` decides how."""
    if not 1 <= clients <= len(labels):
        raise ConfigError(
            f"federation.clients = {clients}: must be from 1 to the number of training samples, "
            f"{len(labels)}"
        )
    dense = np.unique(labels, return_inverse=True)[1]
    owner = scheme.assign(dense, clients, generator(seed, "partition"))
    sizes = np.bincount(owner, minlength=clients)
    if len(owner) != len(labels) or len(sizes) != clients or sizes.min() < 1:
        raise ConfigError(
            f"partition.name: {type(scheme).__name__} must give each of {len(labels)} samples an "
            f"owner from 0 to {clients - 1} and leave no client without samples"
        )
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    # The sort is stable, so the indices of each client ascend.
    return Partition(np.argsort(owner, kind="stable").astype(np.int64), offsets.astype(np.int64))


def _equal_sizes(total: int, parts: int) -> np.ndarray:
    """`total` in `parts` sizes that differ by at most one, the larger first."""
    return total // parts + (np.arange(parts) < total % parts)


def _deal_iid(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.repeat(np.arange(len(sizes)), sizes))


def _by_class(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All sample indices sorted by class, in random order within a class."""
    shuffled = rng.permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _deal(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each client `counts[client, class]` random samples of each class."""
    clients, num_classes = counts.shape
    owner = np.empty(len(labels), dtype=np.int64)
    owner[_by_class(labels, rng)] = np.repeat(
        np.tile(np.arange(clients), num_classes), counts.T.ravel()
    )
    return owner


def _draw_classes(priors: np.ndarray, available: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One class per row of `priors` [m, C] by inverse CDF, among the available classes [C] only."""
    cdf = np.cumsum(priors * available, axis=1)
    cdf = np.where(cdf[:, -1:] > 0, cdf, np.cumsum(available, dtype=float))
    reached = uniforms[:, None] * cdf[:, -1:]
    cdf[:, np.flatnonzero(available)[-1] :] = np.inf  # rounding never draws past the last class
    return (reached >= cdf).sum(axis=1)


def _draw_class_sets(
    holders: np.ndarray, per_client: int, clients: int, rng: np.random.Generator
) -> np.ndarray:
    """A random boolean [N, C] with `per_client` classes in each row, `holders` clients per column.

    Row by row, classes drawn in proportion to the holders they still lack. A class that lacks as
    many holders as there are rows left must be drawn; with that rule the draw never gets stuck.
    """
    lacking = holders.copy()
    holds = np.zeros((clients, len(holders)), dtype=bool)
    # The smallest of exponentials divided by weights = a weighted draw without replacement.
    races = rng.exponential(size=holds.shape)
    for row in range(clients):
        times = np.divide(races[row], lacking, where=lacking > 0, out=np.full(len(lacking), np.inf))
        times[lacking == clients - row] = -1.0
        chosen = np.argsort(times, kind="stable")[:per_client]
        holds[row, chosen] = True
        lacking[chosen] -= 1
    return holds


def _even_counts(
    holds: np.ndarray, class_sizes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Samples per client and class, [N, C]: 1 or more where `holds`, client sizes near-equal.

    Each step spreads one class over its holders so that their sizes come out as level as possible.
    That lowers the sum of the squared sizes, so the sweeps over the classes end.
    """
    counts = holds.astype(np.int64)
    for k, class_size in enumerate(class_sizes):
        holding = rng.permutation(np.flatnonzero(holds[:, k]))
        counts[holding, k] = _equal_sizes(class_size, len(holding))
    sizes = counts.sum(axis=1)
    for _ in range(_SWEEPS):
        before = (sizes**2).sum()
        for k, class_size in enumerate(class_sizes):
            holding = np.flatnonzero(holds[:, k])
            others = sizes[holding] - counts[holding, k]
            counts[holding, k] = _level(others, class_size)
            sizes[holding] = others + counts[holding, k]
        if (sizes**2).sum() == before:
            break
    return counts


def _level(heights: np.ndarray, amount: int) -> np.ndarray:
    """How `amount` units, at least one for each, best level the heights, like water poured in."""
    order = np.argsort(heights, kind="stable")
    low = heights[order] + 1
    water = amount - len(heights)
    # Filling up the first i columns to the height of column i takes `needed[i]`, which ascends.
    needed = low * np.arange(len(low)) - (np.cumsum(low) - low)
    wet = int(np.searchsorted(needed, water, side="right"))
    added = np.ones_like(heights)
    volume = low[:wet].sum() + water
    added[order[:wet]] += _equal_sizes(volume, wet) - low[:wet]
    return added
