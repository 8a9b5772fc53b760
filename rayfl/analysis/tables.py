"""Tables as text: for a terminal, CSV, JSON, Markdown or LaTeX.

CSV and JSON carry plain numbers in the units of MLflow; the others `mean ± standard deviation` in the
units of their headers, with the best row marked.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayfl.analysis.aggregate import Summary
from rayfl.analysis.metrics import Metric

FORMATS = ("table", "csv", "json", "markdown", "latex")
NONE = "–"

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}"}
)


@dataclass(frozen=True)
class Table:
    """A table for people: text in every cell."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None = None
    """Index of the row to mark."""
    left: int = 0
    """Columns from the left that are text; the others are numbers."""


def table_of(summary: Summary) -> Table:
    """The rows of a summary."""
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
    best = [i for i, is_best in enumerate(summary.rows["is_best"]) if is_best]
    rows = tuple(zip(*columns, strict=True))
    return Table(tuple(header), rows, best[0] if best else None, len(summary.by))


def spread(m: Metric, mean: float, std: float) -> str:
    """`mean ± standard deviation`, as far as they are known."""
    if pd.isna(mean):
        return NONE
    text = f"{mean * m.scale:.{m.digits}f}"
    return text if pd.isna(std) else f"{text} ± {std * m.scale:.{m.digits}f}"


def shown(value: Any) -> str:
    """A config value as in an override."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value)


def setting(point: Mapping[str, Any], among: Iterable[str] | None = None) -> list[str]:
    """Config values in short: names bare, other keys by their last part where no other of `among` has it."""
    keys = point if among is None else among
    return [
        shown(value) if key.endswith(".name") else f"{short(key, keys)}={shown(value)}"
        for key, value in point.items()
    ]


def short(key: str, among: Iterable[str]) -> str:
    """The last part of a dotted key, unless it is ambiguous; the Dirichlet parameter is never bare."""
    last = key.rpartition(".")[2]
    same = [other for other in among if other.rpartition(".")[2] == last]
    return key if len(same) > 1 or last == "alpha" else last


def text_of(table: Table, rows: pd.DataFrame, form: str) -> str:
    """A table as text of a format other than `table`; `rows` are its numbers."""
    if form == "csv":
        return rows.to_csv(index=False).rstrip("\n")
    if form == "json":
        return json.dumps(_plain(rows), indent=2)
    return _markdown(table) if form == "markdown" else _latex(table)


def _plain(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows in JSON's types; what is not a number is null."""
    return json.loads(rows.to_json(orient="records", double_precision=15) or "[]")


def _markdown(table: Table) -> str:
    rule = ["---" if i < table.left else "---:" for i in range(len(table.header))]
    lines = [table.header, rule]
    for i, row in enumerate(table.rows):
        escaped = [cell.replace("\\", "\\\\").replace("|", "\\|") for cell in row]
        lines.append([f"**{cell}**" for cell in escaped] if i == table.best else escaped)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latex(table: Table) -> str:
    """Needs the package booktabs."""
    kinds = "l" * table.left + "r" * (len(table.header) - table.left)
    lines = [f"\\begin{{tabular}}{{{kinds}}}", "\\toprule", _latex_row(table.header), "\\midrule"]
    for i, row in enumerate(table.rows):
        lines.append(_latex_row(row, bold=i == table.best))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _latex_row(cells: Sequence[str], bold: bool = False) -> str:
    escaped = [cell.translate(_LATEX) for cell in cells]
    return " & ".join(f"\\textbf{{{c}}}" if bold else c for c in escaped) + r" \\"
