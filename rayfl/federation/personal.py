"""Accuracy of the clients' own models on their own distributions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayfl.federation.breakdown import Breakdown, client_statistics
from rayfl.federation.memories import Memories
from rayfl.federation.pool import Future, Pool
from rayfl.seeds import generator
from rayfl.training.units import Personal, PersonalResult

# Clients whose evaluations are queued or at work.
AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Personalisation:
    """The clients whose models are evaluated, and when."""

    seed: int
    steps: int
    """Local steps before the evaluation."""
    every: int | None
    """Rounds between two; None: after the last round alone, which has one in any case."""
    clients: tuple[int, ...]
    samples: int
    """Test samples of each, at most."""

    @classmethod
    def of(
        cls, seed: int, sizes: int, clients: int, steps: int, every: int | None, samples: int
    ) -> "Personalisation":
        """Choose at most `clients` of the `sizes` clients, once for the whole run."""
        chosen = generator(seed, "personal").permutation(sizes)[:clients]
        ids = tuple(sorted(chosen.tolist()))
        return cls(seed=seed, steps=steps, every=every, clients=ids, samples=samples)

    def is_due(self, round: int, rounds: int) -> bool:
        """True if clients are evaluated after this round."""
        return round == rounds or (self.every is not None and round % self.every == 0)

    def measure(
        self,
        pool: Pool,
        breakdown: Breakdown,
        round: int,
        lr: float,
        point: Any,
        memories: Memories,
    ) -> dict[int, PersonalResult]:
        """Accuracies of each client that has test samples; `point`: handle of the pool."""
        futures: dict[int, Future] = {}
        for client in self.clients:
            samples, weights = self._samples(breakdown, client)
            if len(samples):
                if len(futures) >= AT_ONCE:  # all their memories may be more than the store holds
                    pool.wait([*futures.values()][-AT_ONCE])
                asked = Personal(round, client, lr, self.steps, samples, weights)
                futures[client] = pool.personal(asked, point, memories.handle(client))
        return {client: pool.wait(future) for client, future in futures.items()}

    def _samples(self, breakdown: Breakdown, client: int) -> tuple[np.ndarray, np.ndarray]:
        """Test samples and their weights; if there are more than wanted, so many are drawn by weight."""
        samples, weights = breakdown.of_client(client)
        if len(samples) <= self.samples:
            return samples, weights
        rng = generator(self.seed, "personal", 1, client)
        drawn = rng.choice(samples, self.samples, p=weights / weights.sum())
        return np.sort(drawn), np.full(self.samples, 1 / self.samples)


def metrics(found: Mapping[int, PersonalResult]) -> dict[str, float]:
    """Statistics over the clients, of the global model (`before_accuracy`) and of their own (`accuracy`)."""
    named: dict[str, float] = {}
    ones = np.ones(len(found), np.int64)
    for kind, values in (
        ("before_accuracy", [result.before for result in found.values()]),
        ("accuracy", [result.after for result in found.values()]),
    ):
        statistics = client_statistics(np.array(values, float), ones)
        named |= {f"personal/{kind}_{name}": value for name, value in statistics.items()}
    return named
