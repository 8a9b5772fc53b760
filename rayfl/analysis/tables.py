"""Tables as text: for a terminal, CSV, JSON, Markdown or LaTeX.

CSV and JSON have plain numbers in the units of MLflow; the other formats have `mean ± standard deviation`
in the units of their headers, with the best of each task marked: rows on a terminal, values elsewhere. LaTeX
is for papers: accuracies in percent, symbols for keys, short values.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from rayfl.analysis.aggregate import Summary
from rayfl.analysis.metrics import Metric
from rayfl.analysis.naming import latex, latex_headers, latex_values, shown, spread

_SHORT_ID = 8  # characters of a run's id that tell runs apart
FORMATS = ("table", "csv", "json", "markdown", "latex")


@dataclass(frozen=True)
class Table:
    """A table for readers: text in every cell, that of LaTeX in its style."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: tuple[int, ...] = ()
    """Indices of the rows to mark."""
    left: int = 0
    """Number of text columns, which come first; the others hold numbers."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the cells to mark."""
    underlined: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the cells within one standard error of a bold one; LaTeX alone shows them."""


class Style(NamedTuple):
    """The way a format writes keys, config values, metrics and other text."""

    headers: Callable[[Sequence[str]], list[str]]
    values: Callable[[Sequence[Any]], list[str]]
    metric: Callable[[Metric], Metric]
    text: Callable[[str], str]


PLAIN = Style(list, lambda values: list(map(shown, values)), lambda m: m, lambda text: text)
LATEX = Style(latex_headers, latex_values, lambda m: m.percent, latex)


def style_of(form: str) -> Style:
    """Return the style of a format."""
    return LATEX if form == "latex" else PLAIN


def table_of(summary: Summary, form: str = "table", underline: bool = False) -> Table:
    """Format the rows of a summary; `underline` cells within one standard error of the best."""
    style, rows = style_of(form), summary.rows
    header = style.headers(summary.by)
    columns = [style.values(list(rows[key])) for key in summary.by]
    if form == "table" and (ids := _only_runs(summary)):
        header.append("run")
        columns.append([run_id[:_SHORT_ID] for run_id in ids])
    left = len(header)
    bold, underlined = set(), set()
    for j, m in enumerate(summary.metrics):
        place = len(header)
        bold |= {(i, place) for i in summary.best[j]}
        underlined |= {(i, place) for i in summary.near(j)} if underline else set()
        header.append(style.text(metric_header(style.metric(m))))
        columns.append([style.text(mean_of(style.metric(m), summary, i, j)) for i in rows.index])
        if m.target is not None:
            header.append("reached")
            columns.append(list(rows[f"{m.name}_reached"]))
    counts = ["n", *(["rounds"] if "rounds" not in header else []), *summary.states]
    header += [name.replace("_", " ") for name in counts]
    columns += [[style.text(shown(count)) for count in rows[name]] for name in counts]
    body = tuple(zip(*columns, strict=True))
    return Table(
        tuple(header),
        body,
        summary.best[0],
        left,
        frozenset(bold),
        frozenset(underlined),
    )


def _only_runs(summary: Summary) -> list[str]:
    """List the ids of the rows' runs where each row is one run; nothing where one is not."""
    members = [runs for _, runs in summary.groups]
    if not all(len(runs) == 1 and "run_id" in runs for runs in members):
        return []
    return [str(runs["run_id"].iloc[0]) for runs in members]


def metric_header(m: Metric) -> str:
    """Return the metric's name with its unit."""
    return f"{m.name} ({m.unit})" if m.unit else m.name


def mean_of(m: Metric, summary: Summary, i: int, j: int) -> str:
    """Format metric j of row i, with the number of runs in the mean if not all finished ones are."""
    found = summary.aggregates[i][j]
    partial = m.target is None and 0 < found.n < found.finished
    return spread(m, found.mean, found.std) + (f" (n={found.n})" if partial else "")


def part(table: Table, columns: Sequence[int]) -> Table:
    """Return the table with its columns of text and these of its numbers."""
    kept = [*range(table.left), *columns]
    place = {old: new for new, old in enumerate(kept)}

    def moved(cells: frozenset[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        return frozenset((i, place[j]) for i, j in cells if j in place)

    return replace(
        table,
        header=tuple(table.header[j] for j in kept),
        rows=tuple(tuple(row[j] for j in kept) for row in table.rows),
        bold=moved(table.bold),
        underlined=moved(table.underlined),
    )


def text_of(table: Table, rows: pd.DataFrame, form: str) -> str:
    """Convert a table to text in a format other than `table`; `rows` are its numbers."""
    if form == "csv":
        return rows.to_csv(index=False).rstrip("\n")
    if form == "json":
        # By way of pandas, in JSON's types: NaN becomes null.
        plain = json.loads(rows.to_json(orient="records", double_precision=15) or "[]")
        return json.dumps(plain, indent=2)
    return _markdown(table) if form == "markdown" else _latex(table)


def _markdown(table: Table) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|")

    cells = [
        [f"**{escaped(c)}**" if (i, j) in table.bold else escaped(c) for j, c in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    frame = pd.DataFrame(cells, columns=pd.Index([escaped(name) for name in table.header]))
    sides = ["left" if i < table.left else "right" for i in range(len(table.header))]
    # tabulate would otherwise format the numbers anew.
    return frame.to_markdown(index=False, colalign=sides, disable_numparse=True)


def _latex(table: Table) -> str:
    """A LaTeX table; it needs the package booktabs."""
    kinds = "l" * table.left + "r" * (len(table.header) - table.left)
    cells = [
        [_marked(c, (i, j) in table.bold, (i, j) in table.underlined) for j, c in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    frame = pd.DataFrame(cells, columns=pd.Index(table.header))
    return frame.to_latex(index=False, escape=False, column_format=kinds).rstrip("\n")


def _marked(cell: str, bold: bool, underlined: bool) -> str:
    """Mark a cell: bold text with bold mathematics, or underlined."""
    if bold:
        return rf"\textbf{{\boldmath {cell}}}" if "$" in cell else rf"\textbf{{{cell}}}"
    return rf"\underline{{{cell}}}" if underlined else cell
