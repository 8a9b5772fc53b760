"""Differential privacy of a run's rounds: the release of their sums, and the epsilon that it costs.

Epsilon is that of the library dp-accounting, by Rényi differential privacy (Mironov, CSF 2017,
arXiv:1702.07476). A round is

    bernoulli    a Poisson-sampled Gaussian event with z: neighbours have one client more or less
    uniform      a Gaussian event on a sample without replacement: neighbours have another client in the place
                 of one, which moves the sum by up to 2 C, so z / 2. What the sampling gains is a bound (Wang,
                 Balle and Kasiviswanathan, AISTATS 2019, arXiv:1808.00087); where it is worse than without
                 sampling, that counts

All that follows from the released sums is post-processing: the server's step, its state, its broadcasts.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rayfl.errors import ConfigError
from rayfl.federation.sampling import Sampling
from rayfl.training.privacy import GaussianMechanism
from rayfl.training.units import UnitResult


@dataclass(frozen=True, kw_only=True)
class PrivateRounds:
    """All that the server needs to release the sums of its rounds."""

    mechanism: GaussianMechanism
    steps: float
    """Mean of K_i over all N clients: that of a cohort would tell who is in it."""
    epsilons: tuple[float, ...]
    """After each round; empty without noise."""

    def release_(self, sums: dict[str, torch.Tensor], round: int, empty: bool) -> None:
        """Make the sums over the cohort what may be known of it, in place.

        `empty`: nobody was drawn, and the client that stands in counts for nothing.
        """
        if empty:
            for value in sums.values():
                value.zero_()
        self.mechanism.add_noise_(sums, round)

    def metrics(self, round: int, results: Sequence[UnitResult]) -> dict[str, float]:
        """Share of the cohort's clients whose uploads were clipped, and epsilon after this round."""
        clipped = sum(result.clipped for result in results)
        metrics = {"privacy/clipped": clipped / sum(len(result.losses) for result in results)}
        return metrics | ({"privacy/epsilon": self.epsilons[round - 1]} if self.epsilons else {})


@functools.cache
def epsilons(
    noise: float,
    sampling: Sampling,
    participation: float,
    cohort: int,
    clients: int,
    rounds: int,
    delta: float,
) -> tuple[float, ...]:
    """Epsilon after each round at this delta; empty without noise.

    `noise`: z; `participation`: S / N, `cohort`: S. Raises ConfigError if dp-accounting is not installed.
    """
    if not noise:
        return ()
    try:
        from dp_accounting import (
            GaussianDpEvent,
            NeighboringRelation,
            PoissonSampledDpEvent,
            SampledWithoutReplacementDpEvent,
        )
        from dp_accounting.rdp import RdpAccountant, compute_epsilon
    except ImportError:
        raise ConfigError(
            "epsilon needs the package dp-accounting",
            key="privacy.noise",
            value=noise,
            hint="`pip install 'rayfl[privacy]'` installs it",
        ) from None
    # It warns of each order that it leaves out, where the sum does not converge.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if sampling == "bernoulli":
        accountant = RdpAccountant()
        event = PoissonSampledDpEvent(participation, GaussianDpEvent(noise))
        costs = accountant.compose(event).rdp
    else:
        whole, accountant = (
            RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE) for _ in range(2)
        )
        gaussian = GaussianDpEvent(noise / 2)
        sampled = SampledWithoutReplacementDpEvent(clients, cohort, gaussian)
        costs = np.minimum(accountant.compose(sampled).rdp, whole.compose(gaussian).rdp)
    orders = accountant.orders.tolist()
    return tuple(float(compute_epsilon(orders, r * costs, delta)[0]) for r in range(1, rounds + 1))
