"""Deal out samples, given how many each client gets.

Shapes: n samples, N clients, C classes.
"""

import numpy as np
from numpy.random import Generator


def equal_sizes(total: int, parts: int) -> np.ndarray:
    """`total` in `parts` sizes that differ by at most one, the larger first."""
    return total // parts + (np.arange(parts) < total % parts)


def deal_iid(sizes: np.ndarray, rng: Generator) -> np.ndarray:
    return rng.permutation(np.repeat(np.arange(len(sizes)), sizes))


def by_class(labels: np.ndarray, rng: Generator) -> np.ndarray:
    """All sample indices sorted by class, in random order within a class."""
    shuffled = rng.permutation(len(labels))
    narrow = np.min_scalar_type(
        int(labels.max(initial=0))
    )  # two bytes are sorted in a tenth of the time
    return shuffled[np.argsort(labels[shuffled].astype(narrow), kind="stable")]


def deal(labels: np.ndarray, counts: np.ndarray, rng: Generator) -> np.ndarray:
    """Give each client `counts[client, class]` random samples of each class."""
    owner = np.empty(len(labels), dtype=np.int64)
    classes, clients = np.nonzero(counts.T)  # class by class, and client by client in it
    owner[by_class(labels, rng)] = np.repeat(clients, counts[clients, classes])
    return owner
