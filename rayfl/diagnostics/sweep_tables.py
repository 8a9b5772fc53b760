"""The flatness of a sweep as tables: a row a point, and paired differences to one of them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rayfl.analysis import filters
from rayfl.analysis.aggregate import groups, summarize
from rayfl.analysis.compare import compare
from rayfl.analysis.metrics import Metric, metric
from rayfl.analysis.naming import NONE, shown
from rayfl.analysis.tables import Table, style_of
from rayfl.analysis.tables import table_of as table_of_summary
from rayfl.diagnostics.tables import label
from rayfl.errors import ConfigError
from rayfl.flatness.question import Question
from rayfl.text import nearest

if TYPE_CHECKING:
    from rayfl.diagnostics.sweeps import SweepReport

PREFIX = "flatness/"


def default_columns(metrics: Sequence[str], question: Question) -> list[str]:
    """Accuracy and a dozen of the numbers, where they were measured: of each kind one, at the middle rho."""
    rho, scale_free = (
        f"{sorted(sizes)[len(sizes) // 2]:g}" if sizes else ""
        for sizes in (question.effort.rhos, question.effort.scale_free_rhos)
    )
    wanted = (
        "test/accuracy",
        f"{PREFIX}loss",
        f"{PREFIX}gap_{rho}",
        f"{PREFIX}lambda1",
        f"{PREFIX}trace",
        f"{PREFIX}scale_free/gap_{scale_free}",
        f"{PREFIX}scale_free/lambda1",
        f"{PREFIX}clients/lambda1_end",
        f"{PREFIX}distance/discrepancy",
        f"{PREFIX}alignment/gradient",
        f"{PREFIX}alignment/subspace",
        f"{PREFIX}variance/ratio",
    )
    return [name for name in wanted if name in metrics]


def chosen_columns(names: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """The metrics of these names, which may lack the prefix; ConfigError for one that was not measured."""
    found = []
    for name in names:
        full = next((n for n in (name, PREFIX + name) if n in metrics), None)
        if full is None:
            known = [m.removeprefix(PREFIX) for m in metrics]
            raise ConfigError(
                f"--columns = '{name}': was not measured{nearest(name, known)}; there are "
                f"{', '.join(known)}"
            )
        found.append(full)
    return found


def frame_of(report: "SweepReport") -> pd.DataFrame:
    """Mean and standard deviation of every number, a row a point."""
    return summarize(report.runs, report.by, report.metrics).rows


def table_of(
    report: "SweepReport", columns: Sequence[str], form: str = "table"
) -> tuple[Table, tuple[str, ...]]:
    """The mean of these metrics over the seeds, with its standard deviation; and notes."""
    summary = summarize(report.runs, report.by, [_metric(report.runs, name) for name in columns])
    table = table_of_summary(summary, form)
    prefix = style_of(form).text(PREFIX)
    header = tuple(name.removeprefix(prefix) for name in table.header)
    return replace(table, header=header), summary.notes


def parts(table: Table, most: int = 4) -> list[Table]:
    """Split a wide table into some with so many columns of numbers; the first has the marks."""
    numbers = np.arange(table.left, len(table.header))
    every = []
    for i, part in enumerate(np.array_split(numbers, -(-len(numbers) // most))):
        columns = [*range(table.left), *part]
        header = tuple(table.header[j] for j in columns)
        rows = tuple(tuple(row[j] for j in columns) for row in table.rows)
        best = () if i else table.best
        every.append(replace(table, header=header, rows=rows, best=best, bold=frozenset()))
    return every


def differences(
    report: "SweepReport", columns: Sequence[str], baseline: str
) -> tuple[Table, pd.DataFrame, tuple[str, ...]]:
    """Each point minus the one that the filter `baseline` selects, paired over seeds as `rayfl compare` does.

    The keys that the filter names are what may differ; where others vary, each of their values is compared
    with its own baseline. A cell is `mean difference [95 % interval]`. Also the numbers, and notes.
    """
    keys = list(dict.fromkeys(condition.key for condition in filters.parse(baseline)))
    base = set(filters.select(report.runs, filters.parse(baseline)).index)
    others = report.runs.loc[[i for i in report.runs.index if i not in base]]
    rows, notes = [], list[str]()
    for key, _ in groups(others, keys):
        point = dict(zip(keys, key, strict=True))
        side = " and ".join(f"{k}={shown(v)}" for k, v in point.items())
        for name in columns:
            m = _metric(report.runs, name)
            found = compare(report.runs, side, baseline, name)
            notes += found.notes
            for row in found.rows.to_dict("records"):
                rest = {k: row[k] for k in found.by}
                numbers = {k: row[k] for k in ("difference", "low", "high", "n")}
                rows.append({**point, **rest, "metric": name, **numbers, "text": _interval(row, m)})
    frame = pd.DataFrame(rows)
    left = [c for c in frame.columns[: list(frame.columns).index("metric")]]
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        table.setdefault(tuple(shown(row[k]) for k in left), {})[row["metric"]] = row["text"]
    header = (*left, *(name.removeprefix(PREFIX) for name in columns))
    body = tuple((*k, *(cells.get(name, "") for name in columns)) for k, cells in table.items())
    numbers = frame.drop(columns="text")
    return Table(header, body, left=len(left)), numbers, tuple(dict.fromkeys(notes))


def _interval(row: dict, m: Metric) -> str:
    if pd.isna(row["difference"]):
        return NONE
    text = f"{row['difference']:+.{m.digits}f}"
    if pd.isna(row["low"]):
        return text
    clear = "" if row["low"] <= 0 <= row["high"] else " *"
    return f"{text} [{row['low']:+.{m.digits}f}, {row['high']:+.{m.digits}f}]{clear}"


def _metric(runs: pd.DataFrame, name: str) -> Metric:
    """The metric, with the digits that show four figures of the largest value."""
    m = metric(name)
    largest = float(np.nanmax(np.abs(runs[name].to_numpy(dtype=float)), initial=0.0))
    if not name.startswith(PREFIX) or not largest > 0 or not math.isfinite(largest):
        return m
    digits = min(max(3 - math.floor(math.log10(largest)), 0), 8)
    return replace(m, label=label(name.removeprefix(PREFIX)), digits=digits)
