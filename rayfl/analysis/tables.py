"""Tables as text: for a terminal, CSV, JSON, Markdown or LaTeX.

CSV and JSON have plain numbers in the units of MLflow; the other formats have `mean ± standard deviation`
in the units of their headers, with the best row marked.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import pandas as pd

from rayfl.analysis.aggregate import Summary
from rayfl.analysis.metrics import Metric
from rayfl.text import written

FORMATS = ("table", "csv", "json", "markdown", "latex")
NONE = "–"

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}"}
)


@dataclass(frozen=True)
class Table:
    """A table for readers: text in every cell."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None = None
    """Index of the row to mark."""
    left: int = 0
    """Number of text columns, which come first; the others hold numbers."""


def table_of(summary: Summary) -> Table:
    """Format the rows of a summary."""
    header, columns = list(summary.by), [list(map(shown, summary.rows[k])) for k in summary.by]
    for m in summary.metrics:
        header.append(f"{m.name} (MB)" if m.scale != 1 else m.name)
        pairs = zip(summary.rows[m.name], summary.rows[f"{m.name}_std"], strict=True)
        columns.append([spread(m, mean, std) for mean, std in pairs])
        if m.target is not None:
            header.append("reached")
            columns.append(list(summary.rows[f"{m.name}_reached"]))
    for count in ("n", *summary.states):
        header.append(count.replace("_", " "))
        columns.append([str(c) for c in summary.rows[count]])
    best = summary.ranking[0] if summary.ranking else None
    return Table(tuple(header), tuple(zip(*columns, strict=True)), best, len(summary.by))


def spread(m: Metric, mean: float | None, std: float = nan) -> str:
    """Format `mean ± standard deviation`, without what is missing."""
    if mean is None or isnan(mean):
        return NONE
    text = f"{mean * m.scale:.{m.digits}f}"
    return text if isnan(std) else f"{text} ± {std * m.scale:.{m.digits}f}"


def shown(value: Any) -> str:
    """Format a config value as in an override."""
    return NONE if value is None else written(value)


def setting(point: Mapping[str, Any], among: Iterable[str] | None = None) -> list[str]:
    """Format config values briefly: names without a key, other keys shortened as in `short`."""
    keys = point if among is None else among
    return [
        shown(value) if key.endswith(".name") else f"{short(key, keys)}={shown(value)}"
        for key, value in point.items()
    ]


def short(key: str, among: Iterable[str]) -> str:
    """Return the last part of a dotted key if it is unambiguous; `alpha` always keeps its section."""
    last = key.rpartition(".")[2]
    same = [other for other in among if other.rpartition(".")[2] == last]
    return key if len(same) > 1 or last == "alpha" else last


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

    sides = ["left" if i < table.left else "right" for i in range(len(table.header))]
    frame = _marked(table, escaped, "**{}**")
    # tabulate would otherwise format the numbers anew.
    return frame.to_markdown(index=False, colalign=sides, disable_numparse=True)


def _latex(table: Table) -> str:
    """A LaTeX table; it needs the package booktabs."""
    kinds = "l" * table.left + "r" * (len(table.header) - table.left)
    frame = _marked(table, lambda text: text.translate(_LATEX), r"\textbf{{{}}}")
    return frame.to_latex(index=False, escape=False, column_format=kinds).rstrip("\n")


def _marked(table: Table, escaped: Callable[[str], str], bold: str) -> pd.DataFrame:
    """The table with every text escaped and the best row in bold."""
    rows = [[escaped(cell) for cell in row] for row in table.rows]
    if table.best is not None:
        rows[table.best] = [bold.format(cell) for cell in rows[table.best]]
    return pd.DataFrame(rows, columns=pd.Index([escaped(name) for name in table.header]))
