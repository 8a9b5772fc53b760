"""Evaluation of global models by the pool, beside the rounds that follow."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rayfl.errors import DivergedError
from rayfl.federation.metrics import EvaluationMetrics
from rayfl.federation.pool import Future, Pool
from rayfl.federation.specs import FederationSpec
from rayfl.training.units import EvaluationResult, Split

# Samples that one evaluation unit covers: fixed, so that no sum depends on the number of actors.
EVALUATION_UNIT = 1000
# Beginnings of the names of metrics: of the global model, and of the average of global models.
OF_MODEL: dict[Split, str] = {"test": "test/", "validation": "validation/"}
OF_AVERAGE: dict[Split, str] = {"test": "average/", "validation": "average/validation_"}
SPLITS: dict[str, Split] = {
    name: split for names in (OF_MODEL, OF_AVERAGE) for split, name in names.items()
}


class Evaluations:
    """The evaluations that are on their way, and the metrics of those that have ended."""

    def __init__(
        self, pool: Pool, federation: FederationSpec, diverged: Callable[[int, str], DivergedError]
    ):
        """`diverged` makes the error for a round, and what was not finite in it."""
        self._pool, self._federation, self._diverged = pool, federation, diverged
        # Score of each test sample at the last evaluated w, `[n]`; None before.
        self.scores: np.ndarray | None = None
        # Round, and futures by the beginning of their metrics' names.
        self._waiting: deque[tuple[int, dict[str, list[Future]]]] = deque()

    def begin(self, round: int, models: list[tuple[Any, dict[Split, str]]]) -> None:
        """Queue the evaluation of models after a round: each a broadcast, and names as `OF_MODEL`."""
        samples: dict[Split, int] = {"test": self._federation.test_samples}
        if self._federation.validation_samples:
            samples["validation"] = self._federation.validation_samples
        futures = {
            prefixes[split]: evaluation(self._pool, round, handle, split, n)
            for handle, prefixes in models
            for split, n in samples.items()
        }
        self._waiting.append((round, futures))

    def ended(self, wait: bool) -> Iterator[EvaluationMetrics]:
        """Finished evaluations in the order of their rounds; `wait`: all of them, once they are."""
        while self._waiting:
            round, futures = self._waiting[0]
            if not wait and not all(f.done for of_split in futures.values() for f in of_split):
                return
            results: dict[str, list[EvaluationResult]] = {
                prefix: [self._pool.wait(future) for future in of_split]
                for prefix, of_split in futures.items()
            }
            self._waiting.popleft()
            yield EvaluationMetrics(round, self._metrics(round, results))

    def _metrics(self, round: int, results: dict[str, list[EvaluationResult]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for prefix, parts in results.items():
            loss, scores = together(parts)
            if not math.isfinite(loss):
                # An average changes nothing, so it ends nothing either.
                if prefix in OF_AVERAGE.values():
                    continue
                raise self._diverged(round, f"the {prefix.removesuffix('/')} loss")
            split = SPLITS[prefix]
            scored = self._federation.evaluation.of_split(split, loss, scores, parts)
            metrics |= {prefix + name: value for name, value in scored.items()}
            if prefix == OF_MODEL["test"]:
                self.scores = scores
                metrics |= self._federation.evaluation.breakdown.metrics(scores)
        return metrics


def evaluation(pool: Pool, round: int, broadcast: Any, split: Split, samples: int) -> list[Future]:
    """Queue the evaluation of so many samples of a split at the start of a broadcast."""
    return [
        pool.evaluate(round, broadcast, split, first, min(first + EVALUATION_UNIT, samples))
        for first in range(0, samples, EVALUATION_UNIT)
    ]


def together(parts: list[EvaluationResult]) -> tuple[float, np.ndarray]:
    """Return the mean loss of an evaluation, and each sample's score, `[n]`."""
    scores = np.concatenate([part.scores for part in parts])
    return sum(part.loss for part in parts) / len(scores), scores
