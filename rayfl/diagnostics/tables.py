"""A report of flatness as a table: measures down, rounds and splits across."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from rayfl.analysis.tables import Table

if TYPE_CHECKING:
    from rayfl.diagnostics.measuring import Report

SCALE_FREE = "scale_free/"
_NAMES = {
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "gap": "SAM gap",
    "worst_gap": "worst-case gap",
    "average_gap": "average-case gap",
    "lambda_min": "lambda min",
    "lambda_ratio": "lambda 1 / lambda 5",
    "trace": "trace",
}


def table_of(report: "Report") -> Table:
    """The Euclidean measures, then the scale-free ones; `value ± standard error` where there is one."""
    columns = list(report.frame[["round", "split", "n"]].drop_duplicates().itertuples(index=False))
    values: dict[tuple[int, str], dict[str, float]] = {}
    for row in report.frame.itertuples(index=False):
        values.setdefault((row.round, row.split), {})[row.metric] = row.value  # pyright: ignore
    several = len({round for round, _, _ in columns}) > 1
    header = [
        f"round {round}, {split} (n = {n:,})" if several else f"{split} (n = {n:,})"
        for round, split, n in columns
    ]
    metrics = [m for m in dict.fromkeys(report.frame["metric"]) if not m.endswith("_se")]
    metrics.sort(key=lambda m: m.startswith(SCALE_FREE))
    rows = tuple(
        (label(m), *(_cell(values[round, split], m) for round, split, _ in columns))
        for m in metrics
    )
    return Table(("measure", *header), rows, left=1)


def wide(report: "Report") -> pd.DataFrame:
    """One row for each round and split, one column for each measure."""
    index = ["round", "split", "n"]
    frame = report.frame.pivot_table("value", index, "metric", sort=False)
    return frame.reset_index().rename_axis(columns=None)


def label(metric: str) -> str:
    """A metric's name for readers."""
    name = metric.removeprefix(SCALE_FREE)
    kind, _, rho = name.rpartition("_")
    if kind in _NAMES and rho.replace(".", "").isdigit():
        shown = f"{_NAMES[kind]}, rho {rho}"
    elif name.startswith("lambda") and name[6:].isdigit():
        shown = f"lambda {name[6:]}"
    else:
        shown = _NAMES.get(name, name)
    return f"scale-free {shown}" if metric.startswith(SCALE_FREE) else shown


def _cell(values: Mapping[str, float], metric: str) -> str:
    if metric not in values:
        return ""
    error = values.get(f"{metric}_se")
    return f"{values[metric]:.4g}" + ("" if error is None else f" ± {error:.1g}")
