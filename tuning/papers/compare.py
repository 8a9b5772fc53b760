"""The runs of a preset beside the numbers that its paper reports."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from rayfl.analysis.metrics import metric
from rayfl.analysis.tables import NONE, Table, spread
from rayfl.analysis.tables import shown as cell
from rayfl.errors import ConfigError
from tuning.papers.presets import Preset, Value
from tuning.space import Point, is_task
from tuning.states import counted

if TYPE_CHECKING:
    from tuning.callbacks import OnUpdate
    from tuning.sweep import SweepResult, SweepStart, TrialResult


@dataclass(frozen=True)
class Line:
    """A point of the sweep beside its published number."""

    point: Point
    metric: str
    published: float | None
    mean: float | None
    """Ours, over the seeds; None: no run has it."""
    std: float | None
    """Sample standard deviation over the seeds; None with fewer than two."""
    n: int
    """Runs that the mean is over."""
    seeds: int
    states: str
    """What became of the other trials, such as `1 failed`."""
    note: str

    @property
    def difference(self) -> float | None:
        """Ours minus published."""
        if self.mean is None or self.published is None:
            return None
        return self.mean - self.published


class Agreement(NamedTuple):
    """How alike ours and the published numbers are in order."""

    of: str
    """Metric and task."""
    tau: float | None
    """Kendall's tau-b, 1 is the same order; None where either side is constant."""
    pairs: int
    """Points that have both numbers."""


@dataclass(frozen=True)
class Comparison:
    """What a preset gave."""

    preset: Preset
    lines: tuple[Line, ...]
    agreement: tuple[Agreement, ...]


def reproduce(
    preset: Preset,
    on_start: "Callable[[SweepStart], None]" = lambda start: None,
    on_update: "OnUpdate" = lambda update: None,
) -> "tuple[Comparison, SweepResult]":
    """Run what is missing of the preset's sweep, as `tuning.sweep.run` does, and compare."""
    from tuning import sweep as sweeps

    result = sweeps.run(preset.sweep, on_start, on_update)
    return compare(preset, result.rows), result


def compare(preset: Preset, rows: "Sequence[TrialResult]") -> Comparison:
    """The rows of a sweep beside the published numbers; other points follow without one.

    Means and spreads are over finished trials. A published number whose points the sweep does not have is
    left out.
    """
    of_point: dict[str, list[TrialResult]] = {}
    for row in rows:
        of_point.setdefault(repr(row.trial.point), []).append(row)
    groups = list(of_point.values())
    lines, covered = [], set()
    for value in preset.published.values:
        about = [group for group in groups if value.covers(group[0].trial.point)]
        if not about:
            continue
        covered |= {id(group) for group in about}
        name = value.metric or preset.published.metric
        lines.append(_best([_line(group, name, value) for group in about], name))
    rest = [group for group in groups if id(group) not in covered]
    lines += [_line(group, preset.published.metric, None) for group in rest]
    return Comparison(preset, tuple(lines), tuple(_agreements(lines)))


def table(comparison: Comparison) -> Table:
    """The lines for people; with differences where the setting is the paper's."""
    keys, several, differences = _columns(comparison)
    header = [*keys, *several, "published", "ours", "n", *differences, ""]
    rows = []
    for line in comparison.lines:
        m = metric(line.metric)
        digits = m.digits
        ours = spread(m, _nan(line.mean), _nan(line.std))
        difference = NONE if line.difference is None else f"{line.difference:+.{digits}f}"
        published = NONE if line.published is None else f"{line.published:.{digits}f}"
        shown_keys = [cell(line.point[key]) if key in line.point else "" for key in keys]
        remark = "; ".join(filter(None, [line.states, line.note]))
        rows.append(
            (
                *shown_keys,
                *([line.metric] if several else []),
                *(published, ours, f"{line.n}/{line.seeds}"),
                *([difference] if differences else []),
                remark,
            )
        )
    return Table(tuple(header), tuple(rows), left=len(keys) + len(several))


def frame(comparison: Comparison) -> pd.DataFrame:
    """The lines for programs."""
    keys, _, differences = _columns(comparison)
    columns = ["metric", "published", "mean", "std", "n", "seeds", *differences, "states", "note"]
    return pd.DataFrame(
        [
            {key: line.point.get(key) for key in keys}
            | {column: getattr(line, column) for column in columns}
            for line in comparison.lines
        ]
    )


def remarks(comparison: Comparison, overrides: Sequence[str] = ()) -> list[str]:
    """What a reader of the numbers must know."""
    preset = comparison.preset
    said = [f"published: {preset.published.source}", *preset.published.notes]
    if overrides:
        said.append(f"with {' '.join(overrides)}: not the preset's own setting")
    if preset.scale == "small":
        said.append(
            "scale small: other data, model and size than published, so levels are not comparable; compare "
            "the ordering, as far as it exceeds the spread over seeds"
        )
    for of, tau, pairs in comparison.agreement:
        value = NONE if tau is None else f"{tau:+.2f}"
        said.append(f"rank agreement, {of}: Kendall's tau {value} over {pairs} points")
    return said


def _line(group: "Sequence[TrialResult]", name: str, value: Value | None) -> Line:
    finished = [row for row in group if row.state == "finished"]
    found = _numbers([row.summary for row in finished], name)
    words = [counted(row.state for row in group if row.state != "finished")]
    if len(found) < len(finished):
        words.append(f"{len(finished) - len(found)} not reached")
    return Line(
        point=group[0].trial.point,
        metric=name,
        published=value.value if value else None,
        mean=fmean(found) if found else None,
        std=stdev(found) if len(found) > 1 else None,
        n=len(found),
        seeds=len(group),
        states=", ".join(filter(None, words)),
        note=value.note if value else "",
    )


def _numbers(summaries: list[dict[str, float]], name: str) -> list[float]:
    """The metric of those runs that have it."""
    if not summaries:
        return []
    found = metric(name).of_summaries(pd.DataFrame(summaries))
    if found is None:
        raise ConfigError(
            f"metric {name}: the runs have not recorded it; add its target to base.tracking.targets"
        )
    return [float(number) for number in found.dropna()]


def _best(lines: list[Line], name: str) -> Line:
    """The line with the best mean, if any has one."""
    measured = [line for line in lines if line.mean is not None]
    choose = max if metric(name).higher else min
    return choose(measured, key=lambda line: line.mean) if measured else lines[0]  # type: ignore[arg-type,return-value]


def _agreements(lines: Iterable[Line]) -> list[Agreement]:
    """One for each metric and task: levels of different tasks would agree by themselves."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.mean is not None and line.published is not None:
            task = [f"{key}={cell(v)}" for key, v in line.point.items() if is_task(key)]
            pairs.setdefault(" ".join([line.metric, *task]), []).append((line.published, line.mean))
    agreements = []
    for of, found in pairs.items():
        if len(found) > 1:
            published, ours = (pd.Series(side) for side in zip(*found, strict=True))
            tau = published.corr(ours, method="kendall")  # scipy's, tau-b
            agreements.append(Agreement(of, None if isnan(tau) else tau, len(found)))
    return agreements


def _columns(comparison: Comparison) -> tuple[list[str], list[str], list[str]]:
    """The axes, `metric` if there are several, and `difference` if levels can be compared."""
    keys = [k for k in comparison.preset.sweep.space if any(k in x.point for x in comparison.lines)]
    several = len({line.metric for line in comparison.lines}) > 1
    comparable = comparison.preset.scale == "full"
    return keys, ["metric"] * several, ["difference"] * comparable


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
