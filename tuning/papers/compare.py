"""The results of a preset beside the numbers that its paper reports."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from rayfl.analysis.aggregate import rounds_text
from rayfl.analysis.metrics import Metric, metric
from rayfl.analysis.naming import NONE, row_name, spread
from rayfl.analysis.naming import shown as cell
from rayfl.analysis.ranking import Aggregate, aggregate, chosen_by, ranked
from rayfl.analysis.states import STATES, counted
from rayfl.analysis.tables import Table
from rayfl.config.identity import is_task
from rayfl.errors import ConfigError
from tuning.papers.presets import Preset, PublishedValue
from tuning.results import frame as frame_of
from tuning.space import Point, task

if TYPE_CHECKING:
    from tuning.sweep import TrialResult


@dataclass(frozen=True)
class Line:
    """A point of the sweep beside its published number."""

    point: Point
    metric: str
    published: float | None
    ours: Aggregate
    chooser: Aggregate
    """The numbers that lines are ranked by: ours, or those on validation data."""
    rounds: int | str | None
    """Rounds of the trials in the mean."""
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
    best: tuple[int, ...]
    """Lines that are the best of their metric and task."""
    notes: tuple[str, ...]
    """Remarks on how the best lines were chosen."""

    @property
    def keys(self) -> list[str]:
        """Axes that any line has a value of."""
        return [k for k in self.preset.sweep.space if any(k in line.point for line in self.lines)]

    @property
    def has_several_metrics(self) -> bool:
        return len({line.metric for line in self.lines}) > 1

    @property
    def is_comparable(self) -> bool:
        """True if levels, and not only orders, can be compared: the setting is one of the paper's."""
        return self.preset.scale != "small"


def compare(preset: Preset, rows: "Sequence[TrialResult]") -> Replication:
    """Put the rows of a sweep beside the published numbers; other points follow without one.

    A published number about points that the sweep does not have is left out.
    """
    of_point: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        of_point.setdefault(repr(row.trial.point), []).append(i)
    runs = frame_of(rows, preset.sweep)
    groups = [(rows[members[0]].trial.point, runs.iloc[members]) for members in of_point.values()]
    lines, covered = [], set()
    for value in preset.published.values:
        about = [i for i, (point, _) in enumerate(groups) if value.covers(point)]
        if not about:
            continue
        covered |= set(about)
        name = value.metric or preset.published.metric
        by = chosen_by(runs, metric(name))[0]
        lines.append(_first([_line(*groups[i], by, name, value) for i in about], name))
    name = preset.published.metric
    by = chosen_by(runs, metric(name))[0]
    rest = [group for i, group in enumerate(groups) if i not in covered]
    lines += [_line(point, members, by, name, None) for point, members in rest]
    return Replication(preset, tuple(lines), tuple(_agreements(lines)), *_best(lines, runs))


def table(replication: Replication) -> Table:
    """Format the lines for readers, with differences if the setting is one of the paper's."""
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
            | {"n": f"{line.ours.n}/{line.seeds}", "rounds": cell(line.rounds)}
            | ({"difference": difference} if replication.is_comparable else {})
            | {"": "; ".join(filter(None, [line.states, line.note]))}
        )
    left = len(replication.keys) + replication.has_several_metrics
    header, best = tuple(rows[0]), replication.best
    bold = frozenset((i, header.index("ours")) for i in best)
    return Table(header, tuple(tuple(row.values()) for row in rows), best, left, bold)


def frame(replication: Replication) -> pd.DataFrame:
    """Convert the lines to a frame of plain numbers."""
    return pd.DataFrame(
        [
            {key: line.point.get(key) for key in replication.keys}
            | {"metric": line.metric, "published": line.published}
            | {"mean": line.ours.mean, "std": line.ours.std, "n": line.ours.n, "seeds": line.seeds}
            | ({"difference": line.difference} if replication.is_comparable else {})
            | {"rounds": line.rounds, "states": line.states, "note": line.note}
            | {"is_best": i in replication.best}
            for i, line in enumerate(replication.lines)
        ]
    )


def setting(preset: Preset, overrides: Sequence[str] = ()) -> list[str]:
    """List what is known of the published numbers, and what the preset does otherwise."""
    published, scale = preset.published, preset.scale
    said = [f"published: {published.source}", *published.notes]
    said += [f"scale {scale}: {fact}" for fact in published.settings.get(scale, ())]
    if overrides:
        said.append(f"with {' '.join(overrides)}: not the preset's own setting")
    if scale == "small":
        said.append(
            "scale small: other data, model and size than published, so levels are not comparable; compare "
            "the ordering, as far as it exceeds the spread over seeds"
        )
    return said


def remarks(replication: Replication, overrides: Sequence[str] = ()) -> list[str]:
    """List the facts needed to read the numbers correctly."""
    said = [*setting(replication.preset, overrides), *replication.notes]
    for of, tau, pairs in replication.agreement:
        value = NONE if tau is None else f"{tau:+.2f}"
        said.append(f"rank agreement, {of}: Kendall's tau {value} over {pairs} points")
    return said


def _line(
    point: Point, trials: pd.DataFrame, by: Metric, name: str, value: PublishedValue | None
) -> Line:
    """Aggregate the trials of a point; `by`: metric that lines are ranked by."""
    m = metric(name)
    finished = trials.loc[trials["state"] == "finished"]
    numbers = m.of_summaries(finished) if len(finished) else pd.Series(dtype=float)
    if numbers is None:
        raise ConfigError(
            f"metric {name}: the runs have not recorded it; add its target to base.tracking.targets"
        )
    ours = aggregate(trials.assign(_value=numbers), "_value")
    missed = ours.finished - ours.n
    words = [counted(trials["state"], STATES[1:])]
    words += [f"{missed} not reached"] if missed else []
    return Line(
        point=point,
        metric=name,
        published=value.value if value else None,
        ours=ours,
        chooser=ours if by == m else aggregate(trials, by.name),
        rounds=rounds_text(finished.loc[:, "rounds"]),
        seeds=len(trials),
        states=", ".join(filter(None, words)),
        note=value.note if value else "",
    )


def _first(lines: list[Line], name: str) -> Line:
    """Return the best of the lines that one published number is about; the first if none has a number."""
    found, no_names = [line.chooser for line in lines], [""] * len(lines)
    order = ranked(found, no_names, metric(name), no_names).order
    return lines[order[0]] if order else lines[0]


def _best(lines: list[Line], runs: pd.DataFrame) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Find the best lines of each metric and task, and what a reader must know of the choice."""
    best, notes = [], []
    for name in dict.fromkeys(line.metric for line in lines):
        at = [i for i, line in enumerate(lines) if line.metric == name]
        points = [lines[i].point for i in at]
        by, why = chosen_by(runs, metric(name))
        names = [row_name(list(point), list(point.values())) for point in points]
        ranking = ranked([lines[i].chooser for i in at], [*map(task, points)], by, names)
        best += [at[i] for i in ranking.best]
        notes += [*why, *ranking.notes]
    return tuple(sorted(best)), tuple(notes)


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
