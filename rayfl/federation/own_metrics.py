"""Metrics of the user's own: functions of a model's outputs on a whole split.

Shapes: n samples of the split, `...` of a sample's outputs: (classes,), (L, tokens) or (D,).
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError, reason
from rayfl.training.units import EvaluationResult, Split

logger = logging.getLogger(__name__)

MetricFunction = Callable[[torch.Tensor, torch.Tensor], float]
"""`(outputs [n, ...], targets) -> number`; targets int64 `[n]` or `[n, L]`, or float32 `[n, D]`."""

# A trial has at most so many samples, from all over the test set: all classes are among them.
TRIAL_SAMPLES = 1000


@dataclass(frozen=True, eq=False)
class OwnMetrics:
    """The functions by the name of their metric, and the targets of each split; none by default."""

    functions: Mapping[str, MetricFunction] = field(default_factory=dict)
    targets: Mapping[Split, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls, functions: Mapping[str, MetricFunction], data: Dataset, partition: Partition
    ) -> "OwnMetrics":
        if not functions:
            return cls()
        held_out = data.y_train[partition.validation]
        return cls(functions, {"test": data.y_test, "validation": held_out})

    def metrics(self, split: Split, parts: Iterable[EvaluationResult]) -> dict[str, float]:
        """Each metric of an evaluation; without one that fails or is not finite, which the log tells.

        `parts`: the results of the evaluation's units, in their order.
        """
        if not self.functions:
            return {}
        outputs = np.concatenate([part.outputs for part in parts if part.outputs is not None])
        found: dict[str, float] = {}
        for name, function in self.functions.items():
            try:
                value = _called(function, outputs, self.targets[split])
                problem = f"is {value}"
            except Exception as error:  # whatever the user's function raises; it changes no result
                value, problem = math.nan, f"fails ({reason(error)})"
            if math.isfinite(value):
                found[name] = value
            else:
                logger.warning("%s/%s %s, and is left out at this evaluation", split, name, problem)
        return found

    def check(self, data: Dataset, paths: Mapping[str, str]) -> None:
        """Raise ConfigError for a function that gives no number for outputs of this shape.

        `paths`: the import path of each.
        """
        few = np.unique(np.linspace(0, len(data.y_test) - 1, TRIAL_SAMPLES).astype(int))
        generator = torch.Generator().manual_seed(0)
        outputs = torch.randn(len(few), *data.output_shape, generator=generator).numpy()
        for name, function in self.functions.items():
            refuse = partial(ConfigError, key=f"evaluation.metrics.{name}", value=paths[name])
            targets = data.y_test[few]
            shapes = f"outputs {list(outputs.shape)} and targets {list(targets.shape)}"
            try:
                _called(function, outputs, targets)
            except Exception as error:
                raise refuse(
                    f"fails on {shapes} ({reason(error)}); it must give one number for them"
                ) from error


def warn_of_missing(names: Iterable[str], metrics: Mapping[str, float]) -> None:
    """Log which of these metrics an evaluation lacks: the log of a server actor is out of sight."""
    if "test/loss" in metrics and (left_out := [n for n in names if f"test/{n}" not in metrics]):
        logger.warning(
            "no finite number at an evaluation for evaluation.metrics %s: `rayfl run --local` tells why",
            ", ".join(left_out),
        )


def _called(function: MetricFunction, outputs: np.ndarray, targets: np.ndarray) -> float:
    """The number that the function gives for copies of these, so that it can change neither."""
    with torch.no_grad():
        return float(function(torch.tensor(outputs), torch.tensor(targets)))
