"""The metrics of one evaluation, from its loss and the score of each sample (`rayfl.training.task`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rayfl.data.datasets import Dataset, Kind
from rayfl.data.partition import Partition
from rayfl.training.units import Split


@dataclass(frozen=True)
class Scoring:
    """Kind of the targets, and what R squared compares the errors of numbers with."""

    kind: Kind
    own_loss: bool
    """True if the loss is one of the user's own, which is no logarithm of a perplexity."""
    spread: Mapping[Split, float]
    """Squared distances of the split's numbers from their mean, summed; empty if there are none."""

    @classmethod
    def of(cls, data: Dataset, partition: Partition, own_loss: bool) -> "Scoring":
        if data.kind != "numbers":
            return cls(data.kind, own_loss, {})
        held_out = data.y_train[partition.validation]
        return cls(
            data.kind, own_loss, {"test": _spread(data.y_test), "validation": _spread(held_out)}
        )

    def metrics(self, split: Split, loss: float, scores: np.ndarray) -> dict[str, float]:
        """Mean `loss`, with `accuracy`; of tokens their share, and `perplexity`; of numbers `r2`.

        R squared is 1 - squared errors / squared distances from the mean, over all numbers together; there is
        none where the split's numbers are all the same.
        """
        if self.kind == "classes":
            return {"loss": loss, "accuracy": int(scores.sum()) / len(scores)}
        if self.kind == "numbers":
            spread = self.spread[split]
            errors = float(scores.sum(dtype=np.float64))
            return {"loss": loss} | ({"r2": 1 - errors / spread} if spread else {})
        metrics = {"loss": loss, "accuracy": float(scores.mean(dtype=np.float64))}
        # Beyond e^700 there is no float.
        return metrics if self.own_loss else metrics | {"perplexity": math.exp(min(loss, 700.0))}


def _spread(y: np.ndarray) -> float:
    return float(np.square(y - y.mean(0, dtype=np.float64)).sum()) if len(y) else 0.0
