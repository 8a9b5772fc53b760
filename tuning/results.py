"""The trials of a sweep as a table of runs, so that its means and its best are those of `rayfl.analysis`."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from rayfl.analysis import filters
from rayfl.analysis.aggregate import Summary, summarize
from rayfl.analysis.metrics import Metric, metric
from rayfl.analysis.states import after_rounds
from rayfl.text import written

if TYPE_CHECKING:
    from tuning.config import Sweep
    from tuning.plan import PlannedTrial

_TEST = "test/accuracy"
_SUMMARIES = {_TEST: "accuracy_final", "validation/accuracy": "validation_accuracy_final"}
"""Summaries that are the last value of a round's metric."""


class TrialRow(Protocol):
    """All that is known of a trial."""

    @property
    def trial(self) -> "PlannedTrial": ...
    @property
    def state(self) -> str: ...
    @property
    def rounds(self) -> int: ...
    @property
    def value(self) -> float | None: ...
    @property
    def summary(self) -> Mapping[str, float]: ...


def frame(rows: Iterable[TrialRow], sweep: "Sweep") -> pd.DataFrame:
    """Return one row per trial: its point, `seed`, `state`, `rounds`, the sweep's metric, and summaries."""
    return pd.DataFrame([_columns(row, sweep) for row in rows], dtype=object)


def summary(rows: Iterable[TrialRow], sweep: "Sweep") -> Summary:
    """Summarize the points of the sweep by its metric; beside one of validation, the test accuracy."""
    runs = frame(rows, sweep)
    chosen: list[Metric] = [replace(metric(sweep.metric), higher=sweep.mode == "max")]
    if sweep.metric.startswith("validation/") and _TEST in runs:
        chosen.append(metric(_TEST))
    return summarize(runs, [key for key in sweep.space if key in runs], chosen)


def _columns(row: TrialRow, sweep: "Sweep") -> dict[str, Any]:
    trial = row.trial
    last = trial.experiment.federation.rounds if trial.experiment else None
    # As MLflow has the values, so that rows are grouped as `rayfl results` does.
    point = {key: filters.stored_value(written(value)) for key, value in trial.point.items()}
    known = {name: row.summary[s] for name, s in _SUMMARIES.items() if s in row.summary}
    return {
        **row.summary,
        **point,
        "seed": trial.seed,
        "state": after_rounds(row.state, row.rounds, last),
        "rounds": row.rounds,
        **known,
        sweep.metric: row.value,
    }
