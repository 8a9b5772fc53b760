"""The flatness of a sweep as tables: a row a point, and paired differences to one of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rayfl.analysis import filters
from rayfl.analysis.aggregate import groups, summarize
from rayfl.analysis.compare import interval
from rayfl.analysis.metrics import Metric, metric
from rayfl.analysis.naming import NONE, row_name, shown
from rayfl.analysis.runs import values
from rayfl.analysis.tables import Table, part, style_of
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
        "loss",
        f"gap_{rho}",
        "lambda1",
        "trace",
        f"scale_free/gap_{scale_free}",
        "scale_free/lambda1",
        "clients/lambda1_end",
        "distance/discrepancy",
        "alignment/gradient",
        "alignment/subspace",
        "variance/ratio",
    )
    prefix = PREFIX if "train" in question.splits else f"{PREFIX}test/"
    every = ("test/accuracy", *(prefix + name for name in wanted), *(PREFIX + n for n in wanted))
    return [name for name in dict.fromkeys(every) if name in metrics]


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
    for i, columns in enumerate(np.array_split(numbers, -(-len(numbers) // most))):
        best = () if i else table.best
        every.append(replace(part(table, columns.tolist()), best=best, bold=frozenset()))
    return every


@dataclass(frozen=True)
class Sides:
    """The points of a sweep, and what they are compared with."""

    point: tuple[str, ...]
    """Keys that may differ."""
    rest: tuple[str, ...]
    """Keys whose values both sides share."""
    base: pd.DataFrame
    others: pd.DataFrame


def sides(runs: pd.DataFrame, by: Sequence[str], baseline: str) -> Sides:
    """Split runs by the filter `baseline`; ConfigError if nothing is left on one side.

    The keys that the filter names may differ, and with a name of a section (`algorithm.name`) all options of
    it.
    """
    conditions = filters.parse(baseline)
    named = {condition.key for condition in conditions}
    sections = tuple(key.removesuffix("name") for key in named if key.endswith(".name"))
    point = tuple(k for k in by if k in named or k.startswith(sections))
    chosen = set(filters.select(runs, conditions).index)
    base = runs.loc[[i for i in runs.index if i in chosen]]
    others = runs.loc[[i for i in runs.index if i not in chosen]]
    if base.empty or others.empty:
        which = "none" if base.empty else "all"
        there = "; ".join(f"{k} is {', '.join(map(shown, values(runs, k)))}" for k in by)
        raise ConfigError(
            f"--against = '{baseline}': selects {which} of the {len(runs)} finished trials"
            + (f"; {there}" if there else "")
        )
    return Sides(point, tuple(k for k in by if k not in point), base, others)


def differences(
    report: "SweepReport", columns: Sequence[str], baseline: str, form: str = "table"
) -> tuple[Table, pd.DataFrame, tuple[str, ...]]:
    """Each point minus the one that the filter `baseline` selects, paired over seeds as `rayfl compare` does.

    Where keys vary that the filter does not name, each of their values is compared with its own baseline. A
    cell is `mean difference [95 % interval]`. Also the numbers, and notes.
    """
    split = sides(report.runs, report.by, baseline)
    known: dict[Any, dict[str, Any]] = {}
    for key, members in groups(split.base, [*split.rest, "seed"]):
        if len(members) > 1:
            name = row_name([*split.rest, "seed"], key)
            raise ConfigError(
                f"--against = '{baseline}': selects {len(members)} runs of {name}; name what tells them apart"
            )
        known[key] = members.iloc[0].to_dict()
    metrics = [_metric(report.runs, name) for name in columns]
    rows, cells, notes = [], [], list[str]()
    style = style_of(form)
    for key, members in groups(split.others, [*split.point, *split.rest]):
        place, name = key[len(split.point) :], row_name([*split.point, *split.rest], key)
        runs = members.to_dict("records")
        pairs = [
            (run, known[*place, run["seed"]]) for run in runs if (*place, run["seed"]) in known
        ]
        if len(pairs) < len(runs):
            notes.append(
                f"without a partner: {len(runs) - len(pairs)} of {len(runs)} runs of {name}"
            )
        if not pairs:
            continue
        texts = []
        for m in metrics:
            found = pd.Series([float(a[m.name]) - float(b[m.name]) for a, b in pairs]).dropna()
            low, high = interval(found)
            numbers = {"difference": found.mean(), "low": low, "high": high, "n": len(found)}
            point = dict(zip((*split.point, *split.rest), key, strict=True))
            rows.append({**point, "metric": m.name, **numbers})
            texts.append(style.text(_with_interval(numbers, m)))
        cells.append((*style.values(list(key)), *texts))
    prefix = style.text(PREFIX)
    names = [style.text(name).removeprefix(prefix) for name in columns]
    left = [*split.point, *split.rest]
    table = Table((*style.headers(left), *names), tuple(cells), left=len(left))
    return table, pd.DataFrame(rows), tuple(notes)


def _with_interval(numbers: dict[str, Any], m: Metric) -> str:
    if not numbers["n"]:
        return NONE
    text = f"{numbers['difference']:+.{m.digits}f}"
    low, high = numbers["low"], numbers["high"]
    if pd.isna(low):
        return text
    clear = "" if low <= 0 <= high else " *"
    return f"{text} [{low:+.{m.digits}f}, {high:+.{m.digits}f}]{clear}"


def _metric(runs: pd.DataFrame, name: str) -> Metric:
    """The metric, with the digits that show four figures of the largest value."""
    m = metric(name)
    largest = float(np.nanmax(np.abs(runs[name].to_numpy(dtype=float)), initial=0.0))
    if not name.startswith(PREFIX) or not largest > 0 or not math.isfinite(largest):
        return m
    digits = min(max(3 - math.floor(math.log10(largest)), 0), 8)
    return replace(m, label=label(name.removeprefix(PREFIX)), digits=digits)
