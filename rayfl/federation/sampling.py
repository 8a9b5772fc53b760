"""The clients that take part in a round, and those that come back.

Shapes: N clients, S of them in a cohort on average.

Sources: `bernoulli` is how the FedWMSAM code draws its cohorts; `weighted` cohorts, averaged uniformly,
follow Li et al., "On the Convergence of FedAvg on Non-IID Data", ICLR 2020, arXiv:1907.02189 (there with
replacement).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from rayfl import seeds
from rayfl.errors import RunError, reason
from rayfl.text import shown

Sampling = Literal["uniform", "bernoulli", "weighted"]
SAMPLINGS: tuple[str, ...] = get_args(Sampling)


@dataclass(frozen=True)
class OwnSampling:
    """Sampling by a function of the user's own."""

    path: str
    """`package.module:function`."""
    function: Callable[[np.ndarray, float, np.random.Generator, int], Any]
    """`(sizes [N], participation, rng, round) -> client ids`."""

    def cohort(
        self, participation: float, sizes: np.ndarray, rng: np.random.Generator, round: int
    ) -> list[int]:
        """Client ids, ascending. Raises RunError for what is no cohort."""
        try:
            given = self.function(sizes.copy(), participation, rng, round)
            ids = np.asarray([*given])
        except Exception as error:  # whatever the user's function raises
            raise self._error(round, f"fails ({reason(error)})") from error
        if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            problem = "no list of client ids"
        elif ids.min() < 0 or ids.max() >= len(sizes):
            problem = f"ids beyond 0 to {len(sizes) - 1}"
        elif len(np.unique(ids)) < len(ids):
            problem = "a client twice"
        else:
            return sorted(ids.tolist())
        raise self._error(round, f"gives {problem}: {shown(ids.tolist())}")

    def check(self, participation: float, sizes: np.ndarray, seed: int, rounds: int) -> None:
        """Raise RunError if the first or the last round has no cohort, or not the same one again."""
        for round in (1, rounds):
            first, second = (
                sample_cohort(self, participation, sizes, seed, round) for _ in range(2)
            )
            if first != second:
                raise self._error(round, "gives another cohort when it is called again")

    def _error(self, round: int, problem: str) -> RunError:
        return RunError(
            f"{problem} in round {round}",
            key="federation.sampling",
            value=self.path,
            hint="it must return distinct integers from 0 to N - 1, one at least, that follow from "
            "(sizes, participation, rng, round) alone",
        )


def sample_cohort(
    sampling: Sampling | OwnSampling,
    participation: float,
    sizes: np.ndarray,
    seed: int,
    round: int,
) -> list[int]:
    """Client ids of a round, ascending, given the clients' numbers of samples `sizes` `[N]`.

    uniform: S = round(participation N) different clients, at least one, each equally likely.
    bernoulli: every client by itself with probability `participation`; an empty cohort is drawn again.
    weighted: S different clients one after the other, each draw with probability proportional to the
    samples of those that are left.
    A function of the user's own draws from the same generator; RunError for what it does wrong.
    """
    rng, n = seeds.generator(seed, "cohort", round), len(sizes)
    size = cohort_size(participation, n)
    match sampling:
        case OwnSampling():
            return sampling.cohort(participation, sizes, rng, round)
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
    sampling: Sampling | OwnSampling, participation: float, sizes: np.ndarray, seed: int, round: int
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
