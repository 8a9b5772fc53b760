"""Runs that differ in nothing but their seed, together: mean, spread and count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayfl.analysis import filters as filters
from rayfl.analysis.metrics import Metric, metric
from rayfl.analysis.runs import STATES, axes, canonical, order

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Summary:
    """One row a group of runs."""

    by: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: pd.DataFrame
    """The keys in `by` (None: null, or the runs do not have it); for each metric m its mean `m` and sample
    standard deviation `m_std`, and `m_reached`, such as '2/3', if it has a target; `n` finished
    runs; how many are in each other state that occurs; `is_best`: by the first metric."""
    notes: tuple[str, ...]
    """What a reader of the numbers must know."""

    @property
    def states(self) -> list[str]:
        """Other states than finished that occur."""
        return [state for state in STATES if state in self.rows]


def groups(runs: pd.DataFrame, by: Sequence[str]) -> list[tuple[Key, pd.DataFrame]]:
    """The runs by the values of these keys, ascending; ConfigError for a key that no run has."""
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
    """Sum up the finished runs of each group; runs in other states are counted apart.

    `runs` are those of `results.load` with these metrics; `by` defaults to the keys that vary.
    """
    by = tuple(axes(runs) if by is None else by)
    wanted = tuple(metric(name) for name in metrics)
    rows, notes = [], []
    grouped = groups(runs, by)
    for key, members in grouped:
        finished = members.loc[members["state"] == "finished"]
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        for m in wanted:
            found = finished.loc[:, m.name]
            row |= {m.name: found.mean(), f"{m.name}_std": found.std(ddof=1)}
            if m.target is not None:
                row[f"{m.name}_reached"] = f"{found.notna().sum()}/{len(finished)}"
            elif found.isna().any():
                notes.append(f"{found.isna().sum()} finished run(s) without {m.name} left out")
        counts = members["state"].value_counts()
        row["n"] = len(finished)
        row |= {state: counts.get(state, 0) for state in STATES[1:] if state in set(runs["state"])}
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame[list(by)] = frame[list(by)].astype(object).where(frame[list(by)].notna(), None)
    frame["is_best"] = frame.index == _best(frame, wanted[0])
    return Summary(by, wanted, frame, (*_mixed(grouped, by), *dict.fromkeys(notes)))


def _best(rows: pd.DataFrame, m: Metric) -> int | None:
    """The row with the best mean; for a target, among those that reach it most often."""
    rows = rows.loc[rows[m.name].notna()]
    if m.target is not None:
        share = rows[f"{m.name}_reached"].map(lambda text: _share(*map(int, text.split("/"))))
        rows = rows.loc[share == share.max()]
    if rows.empty:
        return None
    means = rows.loc[:, m.name]
    return means.idxmax() if m.higher else means.idxmin()


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mixed(grouped: Sequence[tuple[Key, pd.DataFrame]], by: Sequence[str]) -> list[str]:
    """A warning if means are over more than seeds."""
    varying = {
        key
        for _, members in grouped
        for key in axes(members.loc[members["state"] == "finished"])
        if key not in by
    }
    if varying:
        return [f"means are over other keys than the seed too: {', '.join(sorted(varying))}"]
    repeated = sum(
        int(members.loc[members["state"] == "finished", "seed"].duplicated().sum())
        for _, members in grouped
        if "seed" in members
    )
    if repeated:
        return [
            f"{repeated} run(s) have a seed that their row has already (other config or version)"
        ]
    return []
