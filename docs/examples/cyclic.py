"""Cyclic participation: groups of clients are there in turn, as day and night have it.

Cho et al., "On the Convergence of Federated Averaging with Cyclic Client Participation", ICML 2023,
arXiv:2302.03109. Run it from the folder of this file:

    rayfl run quickstart federation.sampling=cyclic:cyclic
"""

import numpy as np

GROUPS = 4


def cyclic(
    sizes: np.ndarray, participation: float, rng: np.random.Generator, round: int
) -> np.ndarray:
    """Return S clients of the round's group, at random without replacement; all, if it has fewer.

    `sizes [N]`: training samples of each client; `round`: from 1. It keeps nothing from one call to the next:
    a run that goes on after round 10 must draw what one that never stopped draws.
    """
    here = np.arange(len(sizes))[(round - 1) % GROUPS :: GROUPS]
    size = max(1, int(participation * len(sizes) + 0.5))
    return rng.choice(here, min(size, len(here)), replace=False)
