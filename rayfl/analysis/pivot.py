"""A summary as a table with one metric, the values of some keys down and those of others across."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from rayfl.analysis.aggregate import Key, Summary
from rayfl.analysis.naming import NONE, latex_headers, latex_values, row_name, shown
from rayfl.analysis.runs import order
from rayfl.analysis.states import STATES, counted
from rayfl.analysis.tables import Table, mean_of, metric_header, style_of
from rayfl.config.identity import is_task


class Pivot(NamedTuple):
    """The table for readers, its numbers, and what belongs to them."""

    table: Table
    rows: pd.DataFrame
    """The keys of the rows; for each column its mean, `_std`, `_n` and, with a target, `_reached`."""
    notes: tuple[str, ...]


def pivot(summary: Summary, across: int, form: str = "table", underline: bool = False) -> Pivot:
    """Put the first metric of a summary into a grid; the last `across` keys of its rows make the columns.

    Marked is the best of each column by the summary's rule; where the keys of the rows make tasks, the best
    of each task.
    """
    split = len(summary.by) - across
    down, over = summary.by[:split], summary.by[split:]
    place = {key: i for i, (key, _) in enumerate(summary.groups)}
    rows = list(dict.fromkeys(key[:split] for key in place))
    columns = sorted({key[split:] for key in place}, key=lambda key: [order(v) for v in key])
    cells = {
        (r, c): place[row + column]
        for r, row in enumerate(rows)
        for c, column in enumerate(columns)
        if row + column in place
    }
    at = {i: cell for cell, i in cells.items()}
    is_of_tasks = any(map(is_task, down))
    best = summary.best[0] if is_of_tasks else _of_columns(summary, at)
    near = summary.near(0, best) if underline else []
    style, m = style_of(form), summary.metrics[0]
    has_target = m.target is not None
    found = [summary.aggregates[i][0] for i in cells.values()]
    usual = max((a.finished if has_target else a.n for a in found), default=0)

    def text(i: int) -> str:
        found = summary.aggregates[i][0]
        mean = mean_of(style.metric(m), summary, i, 0)
        if has_target:
            partial = found.n < found.finished or found.finished != usual
            n = f" ({found.n}/{found.finished})" if partial and found.finished else ""
        else:
            n = f" (n={found.n})" if found.n != usual and "(n=" not in mean and found.n else ""
        return style.text(mean + n)

    keys = [style.values([row[k] for row in rows]) for k in range(split)]
    body = [
        (
            *(key[r] for key in keys),
            *(
                text(cells[r, c]) if (r, c) in cells else style.text(NONE)
                for c in range(len(columns))
            ),
        )
        for r in range(len(rows))
    ]
    table = Table(
        (*style.headers(down), *_headers(over, columns, form)),
        tuple(body),
        left=split,
        bold=frozenset((at[i][0], at[i][1] + split) for i in best),
        underlined=frozenset((at[i][0], at[i][1] + split) for i in near),
    )
    what = "task" if is_of_tasks else "column"
    notes = [
        f"{metric_header(style.metric(m))}; best of each {what} marked",
        *_counts(summary, usual),
        *summary.notes,
    ]
    return Pivot(table, _numbers(summary, down, over, rows, columns, cells), tuple(notes))


def _of_columns(summary: Summary, at: dict[int, tuple[int, int]]) -> list[int]:
    """Find the best row of the summary for each column; its ranking is in order within each task."""
    best: dict[int, int] = {}
    for i in summary.ranking:
        best.setdefault(at[i][1], i)
    return list(best.values())


def _headers(over: Sequence[str], columns: Sequence[Key], form: str) -> list[str]:
    """Name the columns by their values, without the keys that they do not have."""
    if form != "latex":
        return [row_name(over, column) for column in columns]
    names = latex_headers(over)
    texts = [latex_values([column[k] for column in columns]) for k in range(len(over))]
    return [
        ", ".join(
            text[c] if key.endswith(".name") else f"{name} = {text[c]}"
            for key, name, text, value in zip(over, names, texts, column, strict=True)
            if value is not None
        )
        for c, column in enumerate(columns)
    ]


def _counts(summary: Summary, usual: int) -> list[str]:
    """The facts that the cells do not give: n, rounds and the runs that are left out."""
    rounds = [shown(r) for r in sorted(set(summary.rows["rounds"]) - {None}, key=order)]
    states = [state for _, members in summary.groups for state in members["state"]]
    left_out = counted(states, STATES[1:])
    m = summary.metrics[0]
    same = f"n = {usual} where a cell says nothing else"
    if m.target is not None:
        same += "; (k/n): k of n runs reached the target, and the mean is over those"
    return [
        f"{same}; rounds: {', '.join(rounds)}" if rounds else same,
        *([f"left out of the means: {left_out}"] if left_out else []),
    ]


def _numbers(
    summary: Summary,
    down: Sequence[str],
    over: Sequence[str],
    rows: Sequence[Key],
    columns: Sequence[Key],
    cells: dict[tuple[int, int], int],
) -> pd.DataFrame:
    found = []
    for r, row in enumerate(rows):
        numbers: dict[str, Any] = dict(zip(down, row, strict=True))
        for c, column in enumerate(columns):
            name = ",".join(f"{k}={shown(v)}" for k, v in zip(over, column, strict=True))
            a = summary.aggregates[cells[r, c]][0] if (r, c) in cells else None
            numbers |= {
                name: a and a.mean,
                f"{name}_std": a and a.std,
                f"{name}_n": a.n if a else 0,
            }
            if summary.metrics[0].target is not None:
                numbers[f"{name}_reached"] = f"{a.n}/{a.finished}" if a else None
        found.append(numbers)
    return pd.DataFrame(found)
