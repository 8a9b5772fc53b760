"""The clients that take part in a round, and those that come back.

Shapes: N clients, S of them in a cohort on average.

Sources: `bernoulli` is how the FedWMSAM code draws its cohorts; `weighted` cohorts, averaged uniformly,
follow Li et al., "On the Convergence of FedAvg on Non-IID Data", ICLR 2020, arXiv:1907.02189 (there with
replacement).
"""

from typing import Literal

import numpy as np

from rayfl import seeds

Sampling = Literal["uniform", "bernoulli", "weighted"]


def sample_cohort(
    sampling: Sampling, participation: float, sizes: np.ndarray, seed: int, round: int
) -> list[int]:
    """Client ids of a round, ascending, given the clients' numbers of samples `sizes` `[N]`.

    uniform: S = round(participation N) different clients, at least one, each equally likely.
    bernoulli: every client by itself with probability `participation`; an empty cohort is drawn again.
    weighted: S different clients one after the other, each draw with probability proportional to the
    samples of those that are left.
    """
    rng, n = seeds.generator(seed, "cohort", round), len(sizes)
    size = cohort_size(participation, n)
    match sampling:
        case "uniform":
            chosen = rng.choice(n, size, replace=False)
        case "weighted":
            chosen = rng.choice(n, size, replace=False, p=sizes / sizes.sum())
        case "bernoulli":
            chosen = np.flatnonzero(rng.random(n) < participation)
            while len(chosen) == 0:
                chosen = np.flatnonzero(rng.random(n) < participation)
    return sorted(chosen.tolist())


def nobody_drawn(
    sampling: Sampling, participation: float, sizes: np.ndarray, seed: int, round: int
) -> bool:
    """True if `sample_cohort` had to draw again, for its first cohort was empty."""
    first = seeds.generator(seed, "cohort", round)
    return sampling == "bernoulli" and not (first.random(len(sizes)) < participation).any()


def cohort_size(participation: float, clients: int) -> int:
    """S, the clients of a round, on average where that varies."""
    return max(1, round(participation * clients))


def survivors(cohort: list[int], client_dropout: float, seed: int, round: int) -> list[int]:
    """The clients of a cohort that come back: each is lost with probability `client_dropout`.

    If all of them were, the one that was last to be lost comes back.
    """
    if not client_dropout:
        return cohort
    luck = [seeds.generator(seed, "dropout", round, client).random() for client in cohort]
    back = [client for client, u in zip(cohort, luck, strict=True) if u >= client_dropout]
    return back or [cohort[int(np.argmax(luck))]]
