"""The results of a preset beside the numbers that its paper reports."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from rayfl.analysis.aggregate import Aggregate, aggregate, ranked
from rayfl.analysis.metrics import metric
from rayfl.analysis.states import counted
from rayfl.analysis.tables import NONE, Table, spread
from rayfl.analysis.tables import shown as cell
from rayfl.config.identity import is_task
from rayfl.errors import ConfigError
from tuning.papers.presets import Preset, PublishedValue
from tuning.space import Point

if TYPE_CHECKING:
    from tuning.sweep import TrialResult


@dataclass(frozen=True)
class Line:
    """A point of the sweep beside its published number."""

    point: Point
    metric: str
    published: float | None
    ours: Aggregate
    seeds: int
    states: str
    """Trials without a number, such as `1 failed`."""
    note: str

    @property
    def difference(self) -> float | None:
        """Ours minus published."""
        if not self.ours.n or self.published is None:
            return None
        return self.ours.mean - self.published


class Agreement(NamedTuple):
    """Rank correlation of our numbers with the published ones."""

    of: str
    """Metric and task."""
    tau: float | None
    """Kendall's tau-b; 1 is the same order, None means that one side is constant."""
    pairs: int
    """Number of points that have both numbers."""


@dataclass(frozen=True)
class Replication:
    """The results of a preset beside the published ones."""

    preset: Preset
    lines: tuple[Line, ...]
    agreement: tuple[Agreement, ...]

    @property
    def keys(self) -> list[str]:
        """Axes that any line has a value of."""
        return [k for k in self.preset.sweep.space if any(k in line.point for line in self.lines)]

    @property
    def has_several_metrics(self) -> bool:
        return len({line.metric for line in self.lines}) > 1

    @property
    def is_comparable(self) -> bool:
        """True if levels, and not only orders, can be compared: the setting is the paper's."""
        return self.preset.scale == "full"


def compare(preset: Preset, rows: "Sequence[TrialResult]") -> Replication:
    """Put the rows of a sweep beside the published numbers; other points follow without one.

    A published number about points that the sweep does not have is left out.
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
    return Replication(preset, tuple(lines), tuple(_agreements(lines)))


def table(replication: Replication) -> Table:
    """Format the lines for readers, with differences if the setting is the paper's."""
    rows = []
    for line in replication.lines:
        m, point = metric(line.metric), line.point
        difference = NONE if line.difference is None else f"{line.difference:+.{m.digits}f}"
        rows.append(
            {key: cell(point[key]) if key in point else "" for key in replication.keys}
            | ({"metric": line.metric} if replication.has_several_metrics else {})
            | {
                "published": spread(m, line.published),
                "ours": spread(m, line.ours.mean, line.ours.std),
            }
            | {"n": f"{line.ours.n}/{line.seeds}"}
            | ({"difference": difference} if replication.is_comparable else {})
            | {"": "; ".join(filter(None, [line.states, line.note]))}
        )
    left = len(replication.keys) + replication.has_several_metrics
    return Table(tuple(rows[0]), tuple(tuple(row.values()) for row in rows), left=left)


def frame(replication: Replication) -> pd.DataFrame:
    """Convert the lines to a frame of plain numbers."""
    return pd.DataFrame(
        [
            {key: line.point.get(key) for key in replication.keys}
            | {"metric": line.metric, "published": line.published}
            | {"mean": line.ours.mean, "std": line.ours.std, "n": line.ours.n, "seeds": line.seeds}
            | ({"difference": line.difference} if replication.is_comparable else {})
            | {"states": line.states, "note": line.note}
            for line in replication.lines
        ]
    )


def remarks(replication: Replication, overrides: Sequence[str] = ()) -> list[str]:
    """List the facts needed to read the numbers correctly."""
    preset = replication.preset
    said = [f"published: {preset.published.source}", *preset.published.notes]
    if overrides:
        said.append(f"with {' '.join(overrides)}: not the preset's own setting")
    if not replication.is_comparable:
        said.append(
            "scale small: other data, model and size than published, so levels are not comparable; compare "
            "the ordering, as far as it exceeds the spread over seeds"
        )
    for of, tau, pairs in replication.agreement:
        value = NONE if tau is None else f"{tau:+.2f}"
        said.append(f"rank agreement, {of}: Kendall's tau {value} over {pairs} points")
    return said


def _line(group: "Sequence[TrialResult]", name: str, value: PublishedValue | None) -> Line:
    ours = _aggregate(group, name)
    missed = ours.finished - ours.n
    words = [counted(row.state for row in group if row.state != "finished")]
    words += [f"{missed} not reached"] if missed else []
    return Line(
        point=group[0].trial.point,
        metric=name,
        published=value.value if value else None,
        ours=ours,
        seeds=len(group),
        states=", ".join(filter(None, words)),
        note=value.note if value else "",
    )


def _aggregate(group: "Sequence[TrialResult]", name: str) -> Aggregate:
    """Aggregate a metric over the trials of a point."""
    runs = pd.DataFrame([{**row.summary, "state": row.state} for row in group])
    finished = runs.loc[runs["state"] == "finished"]
    found = metric(name).of_summaries(finished) if len(finished) else pd.Series(dtype=float)
    if found is None:
        raise ConfigError(
            f"metric {name}: the runs have not recorded it; add its target to base.tracking.targets"
        )
    return aggregate(runs.assign(_value=found), "_value")


def _best(lines: list[Line], name: str) -> Line:
    """Return the best line by the rule of `ranked`; the first if none has a number."""
    ranking = ranked([line.ours for line in lines], metric(name).higher)
    return lines[ranking[0]] if ranking else lines[0]


def _agreements(lines: Iterable[Line]) -> list[Agreement]:
    """Correlate ranks within each metric and task; the levels of different tasks differ in any case."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.difference is not None and line.published is not None:
            task = [f"{key}={cell(v)}" for key, v in line.point.items() if is_task(key)]
            pairs.setdefault(" ".join([line.metric, *task]), []).append(
                (line.published, line.ours.mean)
            )
    agreements = []
    for of, found in pairs.items():
        if len(found) > 1:
            published, ours = (pd.Series(side) for side in zip(*found, strict=True))
            tau = published.corr(ours, method="kendall")  # scipy's, tau-b
            agreements.append(Agreement(of, None if isnan(tau) else tau, len(found)))
    return agreements
