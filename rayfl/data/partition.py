"""The assignment of training samples to clients.

Every scheme (rayfl/data/schemes/) is a true partition: each sample belongs to exactly one client and no
client is empty. A scheme therefore returns one number per sample, its owner. Some samples of each client may
then be held out, to validate with.

Shapes: n training samples, N clients, C classes.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from rayfl.errors import ConfigError
from rayfl.seeds import generator

Labels = np.ndarray  # [n], class of each sample
Groups = np.ndarray | None  # [n], the domain or writer of each sample; None: not known
Owners = np.ndarray  # int64 [n], client of each sample


@dataclass(frozen=True, eq=False)
class Partition:
    """Sample indices by client: client 0's in ascending order, then client 1's, and so on."""

    indices: np.ndarray  # int64 [n]
    offsets: np.ndarray  # int64 [N + 1]: client i owns indices[offsets[i]:offsets[i + 1]]
    # Samples that no client trains on, ascending, int64 [m]; `indices` are the others.
    validation: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def client(self, i: int) -> np.ndarray:
        """The sample indices of client `i`."""
        return self.indices[self.offsets[i] : self.offsets[i + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """The number of samples of each client, [N]."""
        return np.diff(self.offsets)

    def sizes_of(self, clients: Sequence[int] | np.ndarray) -> np.ndarray:
        """The number of samples of these clients, [M], whatever the number of all clients."""
        ids = np.asarray(clients)
        return self.offsets[ids + 1] - self.offsets[ids]

    def histogram(
        self, labels: np.ndarray, num_classes: int, clients: np.ndarray | None = None
    ) -> np.ndarray:
        """The number of samples of each class at each client, [N, C]; `clients`: at these alone, [M, C]."""
        if clients is None:
            sizes, samples = self.sizes, self.indices
        else:
            sizes, samples = self.sizes_of(clients), np.concatenate([*map(self.client, clients)])
        owner = np.repeat(np.arange(len(sizes)), sizes)
        cells = np.bincount(
            owner * num_classes + labels[samples], minlength=len(sizes) * num_classes
        )
        return cells.reshape(len(sizes), num_classes)

    def pooled(self) -> "Partition":
        """All of it at one client."""
        ends = np.array([0, len(self.indices)], np.int64)
        return Partition(np.sort(self.indices), ends, self.validation)

    def digest(self) -> str:
        """SHA-256 that is equal if and only if the partition is equal, on every machine."""
        found = hashlib.sha256(self.indices.astype("<i8", copy=False).data)
        found.update(self.offsets.astype("<i8", copy=False).data)
        if len(self.validation):
            found.update(b"validation")
            found.update(self.validation.astype("<i8", copy=False).data)
        return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """A rule that gives every sample an owner."""

    @property
    def by_class(self) -> bool:
        """True if it looks at labels, and so needs data whose targets are classes."""
        return False

    @abstractmethod
    def assign(self, labels: Labels, clients: int, rng: Generator, groups: Groups = None) -> Owners:
        """The owner, 0..clients-1, of each sample, int64 [n]; each of 0..C-1 is in `labels`."""


def split(
    scheme: Scheme, labels: np.ndarray, clients: int, seed: int, groups: Groups = None
) -> Partition:
    """Spread the samples with these labels (and groups) over the clients. Only `seed` decides how."""
    if not 1 <= clients <= len(labels):
        raise ConfigError(
            f"must be from 1 to the number of training samples, {len(labels)}",
            key="federation.clients",
            value=clients,
            hint="each client needs a sample of its own: lower it, or take more data",
        )
    dense = np.unique(labels, return_inverse=True)[1]
    owner = scheme.assign(dense, clients, generator(seed, "partition"), groups)
    sizes = np.bincount(owner, minlength=clients)
    if len(owner) != len(labels) or len(sizes) != clients or sizes.min() < 1:
        raise ConfigError(
            f"{type(scheme).__name__} must give each of {len(labels)} samples an "
            f"owner from 0 to {clients - 1} and leave no client without samples",
            key="partition.name",
        )
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    # By owner, and ascending in it; plain numbers are sorted in a fraction of the time of a stable argsort.
    pairs = np.asarray(owner, np.int64) * len(labels) + np.arange(len(labels))
    pairs.sort()
    return Partition(pairs % len(labels), offsets.astype(np.int64))


def hold_out(partition: Partition, share: float, seed: int) -> Partition:
    """Hold out `share` of the samples of each client, at random, and never its last one.

    Rounded up or down at random, so that the share is right on average at small clients too. Which ones is
    decided by the seed and the client's own samples; a larger share holds out these and more. Raises
    ConfigError if nothing is held out.
    """
    sizes, rng = partition.sizes, generator(seed, "validation")
    counts = np.minimum((share * sizes + rng.random(len(sizes))).astype(np.int64), sizes - 1)
    if not counts.any():
        raise ConfigError(
            f"holds out no sample: the clients have up to {sizes.max()}, and each keeps one",
            key="data.validation",
            value=share,
            hint="raise it, or lower federation.clients",
            keys=("federation.clients",),
        )
    luck = rng.random(partition.indices.max() + 1)  # of each sample, whoever has it
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((luck[partition.indices], owner))  # client by client, the unlucky first
    rank = np.arange(len(order)) - partition.offsets[owner]
    is_held_out = np.zeros(len(order), dtype=bool)
    is_held_out[order[rank < counts[owner]]] = True
    return Partition(
        partition.indices[~is_held_out],
        partition.offsets - np.concatenate(([0], np.cumsum(counts))),
        np.sort(partition.indices[is_held_out]),
    )
