"""The metrics that runs are compared by: source, unit and better direction of each.

`final`, `best`, `last10` and `loss` are those of the test set; `seconds` is the time of all rounds, `bytes`
the traffic up and down, and `backward_passes` are those of all clients. `rounds_to_0.7`, `bytes_to_0.7`,
`seconds_to_0.7` and `backward_passes_to_0.7` are counted up to the first evaluation whose accuracy is at
least 0.7; a run that never gets there has none. How a run swings is told by `echo_reversals`, the share of
rounds that move against the round before, `accuracy_oscillation`, the spread of test accuracy around its
moving average, and `accuracy_overshoot`, its largest fall below the best so far (`rayfl.federation.echo`).
Any metric that MLflow has for the runs may be used by its name there; lower is better but for accuracies
and what tells how well updates agree.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

from rayfl.errors import ConfigError
from rayfl.text import nearest, shown


class Cost(NamedTuple):
    """A cost of training that grows with the rounds."""

    by_round: tuple[str, ...]
    """Metrics of each round, whose sum is the cost."""
    unit: str
    scale: float
    digits: int


COSTS = {
    "rounds": Cost((), "rounds", 1.0, 1),
    "bytes": Cost(("cost/bytes_up", "cost/bytes_down"), "MB up and down", 1e-6, 2),
    "seconds": Cost(("time/round_s",), "seconds", 1.0, 1),
    "backward_passes": Cost(("cost/backward_passes",), "backward passes", 1.0, 0),
}
_SPREADS = ("accuracy_oscillation", "accuracy_overshoot")
_LASTS = {"loss_final": "test/loss", "r2_final": "test/r2", "perplexity_final": "test/perplexity"}
_SUMMARIES = ("accuracy_final", "accuracy_best", "accuracy_last10", *_LASTS, *_SPREADS)
_TESTED = ("test/accuracy", *_LASTS.values())
_PARTS = ("test/class/", "test/domain")
"""Beginnings of the names of accuracies on a part of the test set."""
_ALIGNED = ("update/agreement", "update/cos_previous", "update/cos_momentum")
_TARGET = re.compile(rf"({'|'.join(COSTS)})_to_(0?\.\d+|1(?:\.0*)?|0)")


@dataclass(frozen=True)
class Metric:
    """One number of a run."""

    name: str
    label: str
    """Label of an axis."""
    higher: bool = False
    """True if higher is better."""
    column: str = ""
    """Name of the summary in MLflow."""
    cost: str = ""
    """Name of a cost in `COSTS`; empty for other metrics."""
    target: float | None = None
    """Accuracy up to which the cost is summed."""
    scale: float = 1.0
    """Factor to the unit of tables and axes."""
    digits: int = 4

    @property
    def unit(self) -> str:
        """Unit of the scaled number, for the header of a table."""
        return {1e-6: "MB", 100.0: "%"}.get(self.scale, "")

    @property
    def percent(self) -> "Metric":
        """The same metric, an accuracy in percent with one decimal."""
        return replace(self, scale=100.0, digits=1) if self.is_accuracy else self

    @property
    def is_accuracy(self) -> bool:
        """True for a share of samples, which tables for papers have in percent."""
        return "accuracy" in self.column or self.column.startswith(_PARTS)

    @property
    def validation(self) -> str:
        """The same number on validation data, by its name in MLflow; empty if there is none."""
        if self.column in _SUMMARIES:
            return f"validation_{self.column}"
        return self.column.replace("test/", "validation/") if self.column in _TESTED else ""

    @property
    def by_round(self) -> str:
        """The per-round metric whose curve shows this number; test accuracy for costs."""
        if "/" in self.column:
            return self.column
        shown = {**_LASTS, "echo_reversals": "update/cos_previous"}
        return shown.get(self.column, "test/accuracy")

    @property
    def histories(self) -> tuple[str, ...]:
        """Per-round metrics that `of_rounds` needs."""
        return ("test/accuracy", *COSTS[self.cost].by_round)

    def of_summaries(self, runs: pd.DataFrame) -> "pd.Series | None":
        """Return the number of each run (NaN: it has none), or None if it needs the run's rounds."""
        if self.target is not None:
            return self._rounds_to_target(runs) if self.cost == "rounds" else None
        if self.cost == "bytes":
            return numbers(runs, "bytes_up") + numbers(runs, "bytes_down")
        if self.cost == "seconds":
            return numbers(runs, "seconds_per_round") * numbers(runs, "rounds")
        if self.column in _SUMMARIES and self.column not in runs:
            raise ConfigError(
                f"--metric = {shown(self.name)}: no run has it, for a run gets it at its end (a spread: of "
                "ten evaluations at least); ask later, or for a metric of its rounds such as test/accuracy; "
                "runs that predict numbers have r2 and loss"
            )
        if self.column not in runs:
            known = [c for c in runs if "/" in c]
            raise ConfigError(
                f"--metric = {shown(self.name)}: no run has it{nearest(self.name, [*NAMES, *known])}; "
                f"known: {', '.join(NAMES)}, {', '.join(sorted(known))}"
            )
        return numbers(runs, self.column)

    def of_rounds(self, rounds: pd.DataFrame) -> float:
        """Return the cost of a run up to its target; `rounds` has the columns `round` and `histories`."""
        first = rounds.loc[rounds["test/accuracy"] >= self.target, "round"].min()
        if self.cost == "rounds":
            return float(first)
        spent = rounds.loc[rounds["round"] <= first, list(COSTS[self.cost].by_round)]
        return float(spent.sum().sum())

    def _rounds_to_target(self, runs: pd.DataFrame) -> "pd.Series | None":
        recorded = numbers(runs, f"rounds_to_{self.target:g}")
        reached = numbers(runs, "accuracy_best") >= self.target
        return recorded if recorded.loc[reached].notna().all() else None


_FIXED = {
    m.name: m
    for m in (
        Metric("final", "final test accuracy", True, "accuracy_final"),
        Metric("best", "best test accuracy", True, "accuracy_best"),
        Metric("last10", "test accuracy, mean of last 10", True, "accuracy_last10"),
        Metric("loss", "final test loss", False, "loss_final"),
        Metric("r2", "final R squared", True, "r2_final"),
        Metric("perplexity", "final perplexity", False, "perplexity_final", digits=2),
        Metric("seconds", "time (s)", cost="seconds", digits=1),
        Metric("epsilon", "epsilon of a client", column="epsilon", digits=3),
        Metric("bytes", "traffic up and down (MB)", cost="bytes", scale=1e-6, digits=2),
        Metric("backward_passes", "backward passes", column="backward_passes", digits=0),
        Metric("echo_reversals", "share of rounds against the last", column="echo_reversals"),
        Metric("accuracy_oscillation", "spread around the trend", column="accuracy_oscillation"),
        Metric("accuracy_overshoot", "largest fall of accuracy", column="accuracy_overshoot"),
    )
}
NAMES = (*_FIXED, *(f"{cost}_to_0.7" for cost in COSTS))


def metric(name: str) -> Metric:
    """Return the metric of this name; ConfigError for a target that is no accuracy."""
    if name in _FIXED:
        return _FIXED[name]
    cost, separator, _ = name.partition("_to_")
    if separator and cost in COSTS:
        match = _TARGET.fullmatch(name)
        if match is None or not 0 < float(match[2]) <= 1:
            raise ConfigError(
                f"--metric = {shown(name)}: the target must be an accuracy, greater than 0 and at most 1, "
                f"as in {cost}_to_0.7"
            )
        target, (_, unit, scale, digits) = float(match[2]), COSTS[cost]
        label = f"{unit} to test accuracy {target:g}"
        return Metric(f"{cost}_to_{target:g}", label, False, "", cost, target, scale, digits)
    return Metric(name, name, higher_is_better(name), name)


def higher_is_better(name: str) -> bool:
    """Return True for a metric of MLflow's that is better where it is higher; lower is, of the others."""
    if name in _ALIGNED or name.startswith("flatness/alignment/") or name.endswith(("/r2", "_r2")):
        return True
    return name.startswith(_PARTS) or ("accuracy" in name and not name.endswith(_SPREADS))


def numbers(runs: pd.DataFrame, column: str) -> pd.Series:
    """Return a column as floats; all NaN if there is none."""
    if column not in runs:
        return pd.Series(float("nan"), index=runs.index)
    return runs.loc[:, column].astype(float)
