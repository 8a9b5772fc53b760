"""A metric over the seeds of a group of runs, and the rule for the best group.

`aggregate` and `ranked` are the only definitions of mean, spread and "best": the table and the display of a
sweep, `rayfl results`, `plot`, `report` and `reproduce` all use them.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from rayfl.analysis.metrics import Metric
from rayfl.analysis.naming import listed, spread
from rayfl.analysis.states import ENDED


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
    seeds: frozenset[Any]
    """Seeds in the mean."""
    finished_seeds: frozenset[Any]
    """Seeds of the finished runs, whether they have the metric or not."""

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN with fewer than two runs."""
        return self.std / self.n**0.5 if self.n else float("nan")


@dataclass(frozen=True)
class Ranking:
    """The groups that have a mean, in the order of the rule."""

    order: tuple[int, ...]
    """Positions of the groups: the best of each task, then the second ones, and so on."""
    best: tuple[int, ...]
    """Position of the best group of each task, ascending."""
    notes: tuple[str, ...]
    """Ties, missing seeds, and better means that are not the best."""


def aggregate(runs: pd.DataFrame, name: str) -> Aggregate:
    """Aggregate column `name` over the finished runs; `runs` also has the columns `state` and `seed`.

    Without `seed`, every run counts as one of its own.
    """
    # By numpy, which is much faster for the few runs of a group; a sweep's display asks often.
    states = list(runs["state"])
    finished = np.array([state == "finished" for state in states], dtype=bool)
    values = runs[name].to_numpy(dtype=float)
    there = finished & ~np.isnan(values)
    found, n = values[there], int(there.sum())
    seeds = runs["seed"].to_numpy() if "seed" in runs else None
    return Aggregate(
        mean=float(found.mean()) if n else nan,
        std=float(found.std(ddof=1)) if n > 1 else nan,
        n=n,
        finished=int(finished.sum()),
        ended=sum(state in ENDED for state in states),
        seeds=frozenset(range(n) if seeds is None else seeds[there]),
        finished_seeds=frozenset(range(int(finished.sum())) if seeds is None else seeds[finished]),
    )


def chosen_by(runs: pd.DataFrame, m: Metric) -> tuple[Metric, list[str]]:
    """Return the metric that groups are ranked by, and what a reader must know of it.

    It is the same number on validation data if every finished run has that, for a setting that is chosen on
    test data has a test accuracy that is too good.
    """
    done = runs.loc[runs["state"] == "finished"]
    if m.target is not None and done.filter(like="validation").notna().any(axis=None):
        return m, [f"best by {m.name} itself, on test data: targets have no validation counterpart"]
    if not m.validation or m.validation not in done or done[m.validation].isna().all():
        return m, []
    words = "validation accuracy" if "accuracy" in m.validation else "validation loss"
    if lacking := int(done[m.validation].isna().sum()):
        return m, [
            f"best by {m.name} on test data: {lacking} of {len(done)} finished runs have no {words}"
        ]
    note = f"best by {words} ({m.validation}); the {m.name} that is shown is of the test data"
    return replace(m, name=m.validation, column=m.validation, label=words), [note]


def ranked(
    groups: Sequence[Aggregate], tasks: Sequence[Hashable], m: Metric, names: Sequence[str]
) -> Ranking:
    """Rank groups of runs within their tasks; `names` are those of the groups in notes.

    Groups are compared by the number of seeds that have the metric, then by the share of their ended runs
    that have it, then by its mean. A mean over the seeds that survived, or over one that happened to finish
    first, would otherwise beat a setting that all seeds have tried. Of equal groups, the first is better.
    """
    sign = -1.0 if m.higher else 1.0

    def mean(i: int) -> float:
        return sign * float(f"{groups[i].mean:.12g}")  # the order of the sum is no difference

    def key(i: int) -> tuple[float, ...]:
        return -len(groups[i].seeds), -groups[i].n / groups[i].ended, mean(i)

    members: dict[Hashable, list[int]] = {}
    for i, task in enumerate(tasks):
        if groups[i].n:
            members.setdefault(task, []).append(i)
    orders = [sorted(of_task, key=lambda i: (*key(i), i)) for of_task in members.values()]
    places = [(place, *key(i), i) for order in orders for place, i in enumerate(order)]
    notes: list[str] = []
    for best, *others in orders:
        if equal := [i for i in others if key(i) == key(best)]:
            value = spread(m, groups[best].mean)
            rows = listed([names[i] for i in (best, *equal)])
            notes.append(f"equal by {m.name} ({value}), the first is marked best: {rows}")
    better = [i for best, *others in orders for i in others if mean(i) < mean(best)]
    notes += _named(
        f"a better {m.name} than the best, but of fewer seeds or a smaller share of the runs",
        ((names[i], spread(m, groups[i].mean)) for i in better),
    )
    notes += _named("fewer seeds than others", _few(groups, tasks, m, names))
    ordered = tuple(place[-1] for place in sorted(places))
    return Ranking(ordered, tuple(sorted(order[0] for order in orders)), tuple(notes))


def _few(
    groups: Sequence[Aggregate], tasks: Sequence[Hashable], m: Metric, names: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """The groups that lack a seed which others of their task have run to the end.

    A seed that did not reach a target is there: tables say how many reached it.
    """
    every: dict[Hashable, frozenset[Any]] = {}
    for group, task in zip(groups, tasks, strict=True):
        every[task] = every.get(task, frozenset()) | group.finished_seeds
    for group, task, name in zip(groups, tasks, names, strict=True):
        own = group.seeds if m.target is None else group.finished_seeds
        if own and own != every[task]:
            yield name, f"{len(own)} of {len(every[task])}"


def _named(what: str, rows: Iterator[tuple[str, str]]) -> list[str]:
    found = [f"{name} ({value})" for name, value in rows]
    return [f"{what}: {listed(found)}"] if found else []
