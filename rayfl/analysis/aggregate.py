"""Tables of means over seeds: one row per group of runs, with what the reader must know of them."""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayfl.analysis import filters
from rayfl.analysis.metrics import Metric, metric, numbers
from rayfl.analysis.naming import listed, row_name, shown
from rayfl.analysis.ranking import Aggregate, aggregate, chosen_by, ranked
from rayfl.analysis.runs import VERSION, axes, canonical, order, values
from rayfl.analysis.states import STATES
from rayfl.config.identity import is_task
from rayfl.errors import ConfigError

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Summary:
    """One row per group of runs."""

    by: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: pd.DataFrame
    """The keys in `by` (None: null, or the runs do not have it); for each metric m its mean `m` and sample
    standard deviation `m_std`, `m_reached`, such as '2/3', if it has a target, and `m_n` if it is not there
    for all finished runs; `n` finished runs and their `rounds`; the number of runs in each other state that
    occurs; `is_best`: of its task, by the first metric."""
    groups: list[tuple[Key, pd.DataFrame]]
    """The values of `by` and the runs of each row."""
    aggregates: list[list[Aggregate]]
    """By row, then by metric."""
    ranking: tuple[int, ...]
    """Rows with a mean of the first metric: the best of each task, then the second ones, and so on."""
    best: tuple[tuple[int, ...], ...]
    """For each metric the best row of each task."""
    chosen: Metric
    """By which rows are ranked: the first metric, or its counterpart on validation data."""
    of_means: tuple[str, ...]
    """Facts needed to read the means correctly."""
    of_best: tuple[str, ...]
    """Facts needed to read the marks correctly."""

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.of_means, *self.of_best)

    @property
    def states(self) -> list[str]:
        """States other than finished that occur."""
        return [state for state in STATES if state in self.rows]

    def near(self, j: int, best: Sequence[int] | None = None) -> list[int]:
        """List the rows whose metric j is at most one standard error worse than the best of their task.

        `best`: rows to compare with, one for each task; default: those of the metric.
        """
        best = self.best[j] if best is None else best
        sign = 1 if self.metrics[j].higher else -1
        tasks = [task(self.by, key) for key, _ in self.groups]
        limit = {
            tasks[i]: sign * found.mean - found.error
            for i in best
            for found in [self.aggregates[i][j]]
        }
        return [
            i
            for i, row in enumerate(self.aggregates)
            if i not in best and tasks[i] in limit and sign * row[j].mean >= limit[tasks[i]]
        ]


def groups(runs: pd.DataFrame, by: Sequence[str]) -> list[tuple[Key, pd.DataFrame]]:
    """Group runs by the values of these keys, ascending; ConfigError for a key that no run has."""
    for key in by:
        filters.check_key(key, runs.columns)
    members: dict[Key, list[int]] = {}
    # Without keys all runs are one group; pandas before 3.1 has no rows of no columns.
    rows = zip(*(runs[key] for key in by), strict=True) if by else itertools.repeat((), len(runs))
    for position, row in enumerate(rows):
        key = tuple(canonical(filters.null_if_missing(value)) for value in row)
        members.setdefault(key, []).append(position)
    ordered = sorted(members, key=lambda key: [order(value) for value in key])
    return [(key, runs.iloc[members[key]]) for key in ordered]


def task(by: Sequence[str], key: Key) -> Hashable:
    """Return the part of a row's key that makes the task, within which methods are compared."""
    return tuple(value for k, value in zip(by, key, strict=True) if is_task(k))


def check_means(runs: pd.DataFrame, by: Sequence[str], over: Sequence[str] = ()) -> None:
    """Raise ConfigError if a group of these keys has runs that differ in more than the seed and `over`.

    Keys that follow from those that are named, as `data.path` does from `data.name`, need not be named.
    """
    named = [*by, *over]
    while mixed := _beside_seed(_finished(groups(runs, named)), named):
        # Names and tasks first: others often follow from them.
        named.append(min(mixed, key=lambda k: (not k.endswith(".name"), not is_task(k), k)))
    if not (lacking := named[len(by) + len(over) :]):
        return
    found = [f"{key} is {', '.join(map(shown, values(runs, key)))}" for key in lacking]
    choice = "sweep" if "sweep" in runs and len(values(runs, "sweep")) > 1 else lacking[0]
    one = f"{choice}={shown(values(runs, choice)[-1])}"
    raise ConfigError(
        f"a mean would be over runs that differ in more than the seed: {listed(found)}; choose among them "
        f"with --where (such as {one}), name these keys too, or say --over "
        f"{','.join([*over, *lacking])} if you mean it"
    )


def summarize(
    runs: pd.DataFrame,
    by: Sequence[str] | None = None,
    metrics: Sequence[str | Metric] = ("last10",),
) -> Summary:
    """Aggregate the finished runs of each group; count runs in other states separately.

    `runs` are those of `runs.load` with these metrics; `by` defaults to the keys that vary. The best row of
    each task is that of the first metric, by its validation counterpart if all finished runs have it.
    """
    by = tuple(axes(runs) if by is None else by)
    wanted = tuple(metric(m) if isinstance(m, str) else m for m in metrics)
    grouped = groups(runs, by)
    names = [row_name(by, key) for key, _ in grouped]
    # Where the seed is a key of the rows, each has one: none is to be reported as lacking seeds.
    members = [m.drop(columns="seed") if "seed" in by else m for _, m in grouped]
    tasks = [task(by, key) for key, _ in grouped]
    chosen = [chosen_by(runs, m) for m in wanted]
    found = [[aggregate(one, m.name) for m in wanted] for one in members]
    rankings = [
        ranked(
            [row[j] for row in found] if c == m else [aggregate(one, c.name) for one in members],
            tasks,
            c,
            names,
        )
        for j, (m, (c, _)) in enumerate(zip(wanted, chosen, strict=True))
    ]
    first = rankings[0]
    return Summary(
        by,
        wanted,
        _frame(by, wanted, grouped, found, first.best),
        grouped,
        found,
        first.order,
        tuple(ranking.best for ranking in rankings),
        chosen[0][0],
        of_means=(*_mixed(grouped, by, names), *_left_out(wanted, found, names)),
        of_best=(*chosen[0][1], *first.notes),
    )


def _frame(
    by: Sequence[str],
    metrics: Sequence[Metric],
    grouped: Sequence[tuple[Key, pd.DataFrame]],
    found: Sequence[Sequence[Aggregate]],
    best: Sequence[int],
) -> pd.DataFrame:
    """The numbers of all rows."""
    occurring = {state for _, members in grouped for state in members["state"]}
    states = [state for state in STATES[1:] if state in occurring]
    partial = [any(a.n < a.finished for a in column) for column in zip(*found, strict=True)]
    rows = []
    for (key, members), aggregates in zip(grouped, found, strict=True):
        row = dict(zip(by, key, strict=True))
        for m, a, is_partial in zip(metrics, aggregates, partial, strict=True):
            row |= {m.name: a.mean, f"{m.name}_std": a.std}
            if m.target is not None:
                row[f"{m.name}_reached"] = f"{a.n}/{a.finished}"
            elif is_partial:
                row[f"{m.name}_n"] = a.n
        counts = list(members["state"])
        rounds = rounds_text(numbers(members.loc[members["state"] == "finished"], "rounds"))
        row |= {"n": counts.count("finished")} | ({} if "rounds" in row else {"rounds": rounds})
        rows.append(row | {state: counts.count(state) for state in states})
    frame = pd.DataFrame(rows)
    for name in (*by, *({"rounds"} - {m.name for m in metrics})):  # values stay as they are
        frame[name] = pd.Series([row[name] for row in rows], dtype=object)
    return frame.assign(is_best=frame.index.isin(list(best)))


def rounds_text(rounds: pd.Series) -> int | str | None:
    """Return the rounds of finished runs; text such as 40-60 if they differ, None if unknown."""
    found = sorted({int(r) for r in rounds.dropna()})
    return f"{found[0]}-{found[-1]}" if len(found) > 1 else next(iter(found), None)


def _left_out(
    metrics: Sequence[Metric], found: Sequence[Sequence[Aggregate]], names: Sequence[str]
) -> Iterator[str]:
    """Notes about finished runs without the metric."""
    for j, m in enumerate(metrics):
        lacking = [
            f"{name} ({row[j].finished - row[j].n} of {row[j].finished})"
            for name, row in zip(names, found, strict=True)
            if m.target is None and row[j].n < row[j].finished
        ]
        if lacking:
            yield f"finished runs without {m.name}, left out of its mean: {listed(lacking)}"


def _mixed(
    grouped: Sequence[tuple[Key, pd.DataFrame]], by: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Notes if means are over more than seeds."""
    finished = _finished(grouped)
    if varying := _beside_seed(finished, by):
        return [f"means are over other keys than the seed too: {', '.join(sorted(varying))}"]
    notes = []
    repeated = sum(int(m["seed"].duplicated().sum()) for m in finished if "seed" in m)
    if repeated:
        notes.append(
            f"{repeated} run(s) have a seed that their row has already (other config or version)"
        )
    mixed = [
        name
        for name, m in zip(names, finished, strict=True)
        if any(m[c].nunique(dropna=False) > 1 for c in VERSION if c in m)
    ]
    if mixed:
        notes.append(f"seeds with different versions of the code or the data: {listed(mixed)}")
    return notes


def _finished(grouped: Sequence[tuple[Key, pd.DataFrame]]) -> list[pd.DataFrame]:
    """Select the finished runs of each group."""
    return [members.loc[members["state"] == "finished"] for _, members in grouped]


def _beside_seed(members: Sequence[pd.DataFrame], by: Sequence[str]) -> set[str]:
    """Find the keys, but for the seed and those of the groups, that vary within a group."""
    return {key for runs in members for key in axes(runs) if key not in by}
