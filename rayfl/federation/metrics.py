"""Metrics of a round, and of its evaluation, which comes later."""

from typing import NamedTuple

import numpy as np

from rayfl.federation.pool import RoundTraining
from rayfl.training.units import UnitResult, WorkUnit


class RoundMetrics(NamedTuple):
    """Metrics of a finished round. Of a round that a checkpoint brought back, its evaluation's too."""

    round: int
    values: dict[str, float]


class EvaluationMetrics(NamedTuple):
    """Metrics of the parameters after `round` rounds."""

    round: int
    values: dict[str, float]


Metrics = RoundMetrics | EvaluationMetrics


class PendingRound(NamedTuple):
    """A round whose work units are at work."""

    round: int
    began: float
    lr: float
    sampled: int  # clients of the cohort, those that will be lost among them
    clients: int  # clients that come back
    bytes_down: int  # for one client
    units: list[WorkUnit]
    training: RoundTraining

    def metrics(self, results: list[UnitResult], weights: np.ndarray) -> dict[str, float]:
        """The round's metrics. Clients that were lost cost bytes down, nothing else.

        `results`: the units'; `weights`: of their clients, `[S]`.
        """
        losses = np.concatenate([result.losses for result in results])
        drifts = np.concatenate([result.drifts for result in results])
        return {
            "train/loss": float(np.average(losses, weights=weights)),
            "train/drift": float(np.average(drifts, weights=weights)),
            "train/lr": self.lr,
            "cohort/size": float(self.clients),
            "cohort/dropped": float(self.sampled - self.clients),
            "cost/bytes_down": float(self.sampled * self.bytes_down),
            "cost/bytes_up": float(sum(result.bytes_up for result in results)),
            "cost/backward_passes": float(sum(result.backward_passes for result in results)),
            "time/client_s": sum(result.seconds for result in results),
        }
