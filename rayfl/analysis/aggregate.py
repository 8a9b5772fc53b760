"""A metric over the seeds of a group of runs, and the rule for the best group.

`aggregate` and `ranked` are the only definitions of mean, spread and "best": the summary of a sweep,
`rayfl results`, `plot`, `report` and `reproduce` all use them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayfl.analysis import filters
from rayfl.analysis.metrics import Metric, metric
from rayfl.analysis.runs import axes, canonical, order
from rayfl.analysis.states import ENDED, STATES

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Aggregate:
    """One metric over the runs of a group."""

    mean: float
    """Over the finished runs that have the metric; NaN: no run has it."""
    std: float
    """Sample standard deviation; NaN with fewer than two runs."""
    n: int
    """Runs in the mean."""
    finished: int
    ended: int
    """Finished runs, and those that failed, were stopped early or were infeasible."""


@dataclass(frozen=True)
class Summary:
    """One row per group of runs."""

    by: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: pd.DataFrame
    """The keys in `by` (None: null, or the runs do not have it); for each metric m its mean `m` and sample
    standard deviation `m_std`, and `m_reached`, such as '2/3', if it has a target; `n` finished
    runs; the number of runs in each other state that occurs; `is_best`: by the first metric."""
    groups: list[tuple[Key, pd.DataFrame]]
    """The values of `by` and the runs of each row."""
    ranking: tuple[int, ...]
    """Rows with a mean of the first metric, the best first."""
    notes: tuple[str, ...]
    """Facts needed to read the numbers correctly."""

    @property
    def states(self) -> list[str]:
        """States other than finished that occur."""
        return [state for state in STATES if state in self.rows]


def aggregate(runs: pd.DataFrame, name: str) -> Aggregate:
    """Aggregate column `name` over the finished runs; `runs` also has the column `state`."""
    states = runs.loc[:, "state"]
    values = runs.loc[states == "finished", name].astype(float)
    return Aggregate(
        mean=float(values.mean()),
        std=float(values.std(ddof=1)),
        n=int(values.count()),
        finished=len(values),
        ended=int(states.isin(ENDED).sum()),
    )


def ranked(groups: Iterable[Aggregate], higher: bool) -> list[int]:
    """Return the positions of the groups that have a mean, the best first.

    Groups are compared by the share of their ended runs that have the metric, then by its mean. A mean over
    the seeds that survived would otherwise favour a setting whose other seeds failed or missed the target.
    """
    sign = -1.0 if higher else 1.0
    keys = [(-g.n / g.ended, sign * g.mean, i) for i, g in enumerate(groups) if g.n]
    return [i for _, _, i in sorted(keys)]


def groups(runs: pd.DataFrame, by: Sequence[str]) -> list[tuple[Key, pd.DataFrame]]:
    """Group runs by the values of these keys, ascending; ConfigError for a key that no run has."""
    for key in by:
        filters.check_key(key, runs.columns)
    members: dict[Key, list[int]] = {}
    for position, row in enumerate(runs[list(by)].itertuples(index=False, name=None)):
        key = tuple(canonical(filters.null_if_missing(value)) for value in row)
        members.setdefault(key, []).append(position)
    ordered = sorted(members, key=lambda key: [order(value) for value in key])
    return [(key, runs.iloc[members[key]]) for key in ordered]


def summarize(
    runs: pd.DataFrame, by: Sequence[str] | None = None, metrics: Sequence[str] = ("last10",)
) -> Summary:
    """Aggregate the finished runs of each group; count runs in other states separately.

    `runs` are those of `runs.load` with these metrics; `by` defaults to the keys that vary.
    """
    by = tuple(axes(runs) if by is None else by)
    wanted = tuple(metric(name) for name in metrics)
    grouped = groups(runs, by)
    found = [[aggregate(members, m.name) for m in wanted] for _, members in grouped]
    others = [state for state in STATES[1:] if state in set(runs["state"])]
    rows = [
        dict(zip(by, key, strict=True)) | _cells(members, wanted, aggregates, others)
        for (key, members), aggregates in zip(grouped, found, strict=True)
    ]
    frame = pd.DataFrame(rows)
    frame[list(by)] = frame[list(by)].astype(object).where(frame[list(by)].notna(), None)
    ranking = ranked([aggregates[0] for aggregates in found], wanted[0].higher)
    frame["is_best"] = frame.index.isin(ranking[:1])
    notes = [*_mixed(grouped, by), *_left_out(wanted, found), *_passed_over(frame, wanted[0])]
    return Summary(by, wanted, frame, grouped, tuple(ranking), tuple(notes))


def _cells(
    members: pd.DataFrame,
    metrics: Sequence[Metric],
    aggregates: Sequence[Aggregate],
    states: Sequence[str],
) -> dict[str, Any]:
    """The numbers of one row."""
    row: dict[str, Any] = {}
    for m, a in zip(metrics, aggregates, strict=True):
        row |= {m.name: a.mean, f"{m.name}_std": a.std}
        if m.target is not None:
            row[f"{m.name}_reached"] = f"{a.n}/{a.finished}"
    found = list(members["state"])
    row["n"] = found.count("finished")
    return row | {state: found.count(state) for state in states}


def _left_out(metrics: Sequence[Metric], found: Sequence[Sequence[Aggregate]]) -> Iterable[str]:
    """Warnings about finished runs without the metric."""
    return dict.fromkeys(
        f"{a.finished - a.n} finished run(s) without {m.name} left out"
        for aggregates in found
        for m, a in zip(metrics, aggregates, strict=True)
        if m.target is None and a.n < a.finished
    )


def _passed_over(rows: pd.DataFrame, m: Metric) -> list[str]:
    """A note if a row has a better mean than the best row."""
    signed = rows.loc[:, m.name] * (1 if m.higher else -1)
    better = int((signed > signed.loc[rows["is_best"]].max()).sum())
    return [f"{better} row(s) with a better mean: more of their runs lack {m.name}"] * bool(better)


def _mixed(grouped: Sequence[tuple[Key, pd.DataFrame]], by: Sequence[str]) -> list[str]:
    """A warning if means are over more than seeds."""
    finished = [members.loc[members["state"] == "finished"] for _, members in grouped]
    varying = {key for members in finished for key in axes(members) if key not in by}
    if varying:
        return [f"means are over other keys than the seed too: {', '.join(sorted(varying))}"]
    repeated = sum(int(m["seed"].duplicated().sum()) for m in finished if "seed" in m)
    if repeated:
        return [
            f"{repeated} run(s) have a seed that their row has already (other config or version)"
        ]
    return []
