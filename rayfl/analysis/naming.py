"""Config values, settings and means as text, and the names of keys in tables for papers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from typing import Any

from rayfl.analysis.metrics import Metric
from rayfl.text import written

NONE = "–"

_SYMBOLS = {
    "algorithm.name": "Algorithm",
    "algorithm.beta": r"$\beta$",
    "algorithm.gamma": r"$\gamma$",
    "algorithm.mu": r"$\mu$",
    "algorithm.rho": r"$\rho$",
    "algorithm.server_lr": r"$\eta_g$",
    "data.name": "Data",
    "federation.batch_size": "$B$",
    "federation.client_dropout": "Dropout",
    "federation.clients": "$N$",
    "federation.cohort": "Cohort",
    "federation.local_epochs": "$E$",
    "federation.local_steps": "$K$",
    "federation.lr": r"$\eta$",
    "federation.rounds": "Rounds",
    "model.name": "Model",
    "partition.alpha": r"$\alpha$",
    "partition.name": "Partition",
    "seed": "Seed",
}
"""The only names of keys in LaTeX; other keys have their last part."""

_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}"}
)
_POWER = re.compile(r"(-?[\d.]+)e([+-]\d+)")


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


def row_name(by: Sequence[str], key: Sequence[Any]) -> str:
    """Describe a row of a table in a note, without the keys that it does not have."""
    point = {k: value for k, value in zip(by, key, strict=True) if value is not None}
    return ", ".join(setting(point, by)) or "all runs"


def short(key: str, among: Iterable[str]) -> str:
    """Return the last part of a dotted key if it is unambiguous; `alpha` always keeps its section."""
    last = key.rpartition(".")[2]
    same = [other for other in among if other.rpartition(".")[2] == last]
    return key if len(same) > 1 or last == "alpha" else last


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    return text.translate(_SPECIAL)


def latex_headers(keys: Sequence[str]) -> list[str]:
    """Name keys in LaTeX: a symbol or a word if the key has one, else its last part; no name twice."""
    names = [_SYMBOLS.get(key) or latex(key.rpartition(".")[2]) for key in keys]
    return [
        latex(key) if names.count(name) > 1 else name for key, name in zip(keys, names, strict=True)
    ]


def latex_values(values: Sequence[Any]) -> list[str]:
    """Format config values with at most four significant digits, if they stay different from each other."""
    brief = [_brief(value) for value in values]
    exact = list(map(shown, values))
    return list(map(_number, brief if len(set(brief)) == len(set(exact)) else exact))


def listed(items: Sequence[str], most: int = 6) -> str:
    """Join some items for a note, and count the others."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return "; ".join([*items[:most], *more])


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _number(text: str) -> str:
    """Typeset a formatted value: 1e-05 as a power of ten."""
    if (match := _POWER.fullmatch(text)) is None:
        return latex(text)
    factor = "" if float(match[1]) == 1 else rf"{match[1]} \cdot "
    return f"${factor}10^{{{int(match[2])}}}$"
