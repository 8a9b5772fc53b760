"""Paired comparison of two sets of runs over seeds: mean difference and its 95 % confidence interval (t)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayfl.analysis import filters
from rayfl.analysis.aggregate import Key, groups, rounds_text
from rayfl.analysis.metrics import Metric, metric
from rayfl.analysis.naming import NONE
from rayfl.analysis.naming import shown as cell
from rayfl.analysis.runs import axes, values
from rayfl.analysis.states import STATES, counted
from rayfl.analysis.tables import Table, style_of
from rayfl.errors import ConfigError

FEW = 5
"""Number of pairs below which the verdict carries a warning."""


@dataclass(frozen=True)
class PairedComparison:
    """Metric of A minus metric of B, over pairs of runs with the same seed."""

    metric: Metric
    by: tuple[str, ...]
    """Keys that vary within both sides; each combination of their values is a row."""
    rows: pd.DataFrame
    """The keys in `by`; `a`, `b`: means over the pairs; `difference`: mean difference; `low`, `high`: its
    95 % confidence interval; `n` pairs and the `rounds` of their runs; `verdict`."""
    notes: tuple[str, ...]
    """Runs that were left out."""


def compare(runs: pd.DataFrame, a: str, b: str, name: str = "last10") -> PairedComparison:
    """Compare the finished runs that two filters select; a word without a sign names an algorithm.

    Runs are paired by their seed and every key that varies. A key may differ between the sides only if a
    filter names it (`algorithm.name` also covers all options of the algorithm). Raises ConfigError if a seed
    has several runs on one side, or if nothing can be paired.
    """
    m, conditions = metric(name), [filters.parse(side) for side in (a, b)]
    sides = [_side(runs, text, c) for text, c in zip((a, b), conditions, strict=True)]
    named = {condition.key for side in conditions for condition in side}
    sections = tuple(key.removesuffix("name") for key in named if key.endswith(".name"))
    both = pd.concat(sides)
    ids = [set(side["run_id"]) for side in sides]
    if ids[0] & ids[1]:
        raise ConfigError(
            f"'{a}' and '{b}' both select run {min(ids[0] & ids[1])}; nothing to compare"
        )
    by = tuple(k for k in axes(both) if k not in named and not k.startswith(sections))
    keys = (*by, "seed")
    of_a, of_b = (_by_keys(side, keys, text) for side, text in zip(sides, (a, b), strict=True))
    pairs = sorted(of_a.keys() & of_b.keys(), key=repr)
    if not pairs:
        raise ConfigError(f"no run of '{a}' pairs with one of '{b}': {_why_none(sides, keys)}")
    notes = [
        f"left out, of '{text}': {found}"
        for text, side in zip((a, b), conditions, strict=True)
        if (found := counted(filters.select(runs, side)["state"], STATES[1:]))
    ]
    notes += [
        f"without a partner, of '{text}': "
        + "; ".join(", ".join(map("{}={}".format, keys, map(cell, key))) for key in alone)
        for text, side in ((a, of_a), (b, of_b))
        if (alone := sorted(side.keys() - set(pairs), key=repr))
    ]
    table = pd.DataFrame(
        [
            (*pair, *(run.get(c) for c in (name, "rounds") for run in (of_a[pair], of_b[pair])))
            for pair in pairs
        ],
        columns=pd.Index([*keys, "a", "b", "rounds_a", "rounds_b"]),
        dtype=object,
    )
    lacking = table[table[["a", "b"]].isna().any(axis=1)]
    if len(lacking):
        why = "did not reach the target" if m.target is not None else f"have no {name}"
        seeds = ", ".join(map(str, lacking["seed"]))
        notes.append(f"left out, because one or both runs {why}: seed {seeds}")
    rows = [
        dict(zip(by, key, strict=True)) | _row(members.drop(columns=list(keys)).astype(float), m)
        for key, members in groups(table, by)
    ]
    return PairedComparison(m, by, pd.DataFrame(rows), tuple(notes))


def table_of(result: PairedComparison, form: str = "table") -> Table:
    """Format the rows of a comparison in the unit of the metric."""
    style = style_of(form)
    m = style.metric(result.metric)
    settings = [style.values(list(map(filters.null_if_missing, result.rows[k]))) for k in result.by]

    def number(value: float, form: str = "") -> str:
        return NONE if pd.isna(value) else f"{value * m.scale:{form}.{m.digits}f}"

    rows = []
    for i, row in enumerate(result.rows.to_dict("records")):
        interval = f"[{number(row['low'], '+')}, {number(row['high'], '+')}]"
        rows.append(
            (
                *(column[i] for column in settings),
                *(number(row[side]) for side in ("a", "b")),
                number(row["difference"], "+"),
                NONE if pd.isna(row["low"]) else interval,
                str(row["n"]),
                cell(filters.null_if_missing(row["rounds"])),
                row["verdict"],
            )
        )
    unit = f" ({m.unit})" if m.unit == "%" else ""
    others = (f"A{unit}", f"B{unit}", "A - B", "95 % interval", "n", "rounds", "verdict")
    header = (*style.headers(result.by), *map(style.text, others))
    left = len(result.by)
    body = tuple((*row[:left], *map(style.text, row[left:])) for row in rows)
    return Table(header, body, left=left)


def _side(runs: pd.DataFrame, text: str, conditions: Sequence[filters.Condition]) -> pd.DataFrame:
    selected = filters.select(runs, conditions)
    finished = selected.loc[selected["state"] == "finished"]
    if finished.empty:
        found = "; ".join(f"{c.key} is {_listed(runs, c.key)}" for c in conditions)
        raise ConfigError(f"'{text}': no finished run; {len(selected)} in other states; {found}")
    return finished


def _by_keys(side: pd.DataFrame, keys: Sequence[str], text: str) -> dict[Key, pd.Series]:
    """Return the run by the values of these keys, seed last; ConfigError if they have several runs."""
    found: dict[Key, pd.Series] = {}
    for key, members in groups(side, keys):
        if len(members) > 1:
            differing = axes(members)
            listed = "; ".join(f"{k} is {_listed(members, k)}" for k in differing)
            name = f"name one, as in {differing[0]}=..." if differing else "select one with --where"
            raise ConfigError(
                f"'{text}': seed {key[-1]} has {len(members)} runs ({listed or 'of different versions'}); "
                + name
            )
        found[key] = members.iloc[0]
    return found


def _why_none(sides: Sequence[pd.DataFrame], keys: Sequence[str]) -> str:
    """Name the keys without a common value, for the message that nothing can be paired."""
    apart = [
        f"{key} is {_listed(sides[0], key) or 'missing'} there and "
        f"{_listed(sides[1], key) or 'missing'} here"
        for key in keys
        if not set(values(sides[0], key)) & set(values(sides[1], key))
    ]
    found = "; ".join(apart or ["no setting has a seed in common"])
    return f"{found}; name in both filters what may differ"


def _listed(runs: pd.DataFrame, key: str) -> str:
    return ", ".join(map(cell, values(runs, key)))


def _row(pairs: pd.DataFrame, m: Metric) -> dict[str, Any]:
    """Return the numbers of one row, over the pairs in which both runs have the metric."""
    pairs = pairs.dropna(subset=["a", "b"])
    rounds = pd.Series(pairs[["rounds_a", "rounds_b"]].to_numpy().ravel())
    differences, n = pairs.loc[:, "a"] - pairs.loc[:, "b"], len(pairs)
    low, high = interval(differences)
    return {
        "a": pairs["a"].mean(),
        "b": pairs["b"].mean(),
        "difference": differences.mean(),
        "low": low,
        "high": high,
        "n": n,
        "rounds": rounds_text(rounds),
        "verdict": _verdict(low, high, n, m),
    }


def interval(differences: pd.Series) -> tuple[float, float]:
    """95 % confidence interval of the mean by Student's t; NaN with fewer than two values."""
    from scipy import stats  # its import takes about a second

    if len(differences) < 2:
        return float("nan"), float("nan")
    mean, error = float(differences.mean()), float(stats.sem(differences))
    if error == 0:  # scipy would return NaN
        return mean, mean
    return stats.t.interval(0.95, len(differences) - 1, mean, error)


def _verdict(low: float, high: float, n: int, m: Metric) -> str:
    if n < 2:
        return "too few pairs: an interval needs two"
    if low <= 0 <= high:
        verdict = "no clear difference"
    else:
        verdict = "A is better" if (low > 0) == m.higher else "B is better"
    return f"{verdict} (only {n} pairs)" if n < FEW else verdict
