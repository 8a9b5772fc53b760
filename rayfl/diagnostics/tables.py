"""A report of flatness as a table: measures down, rounds and splits across."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from rayfl.analysis.tables import Table

if TYPE_CHECKING:
    from rayfl.diagnostics.measuring import Report

SCALE_FREE = "scale_free/"
_NAMES = {
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "gap": "SAM gap",
    "worst_gap": "worst-case gap",
    "average_gap": "average-case gap",
    "lambda_min": "lambda min",
    "lambda_ratio": "lambda 1 / lambda 5",
    "trace": "trace",
    "clients/loss_start": "clients' loss at w",
    "clients/loss_end": "clients' loss at y_i",
    "clients/lambda1_start": "clients' lambda 1 at w",
    "clients/lambda1_end": "clients' lambda 1 at y_i",
    "distance/discrepancy": "flatness discrepancy",
    "distance/sharpness": "flatness distance, sharpness",
    "distance/perturbation": "flatness distance, perturbation",
    "distance/point": "flatness distance, point",
    "alignment/gradient": "cos(client's gradient, global)",
    "alignment/perturbation": "cos(method's perturbation, global)",
    "alignment/eigenvector": "|cos| of top eigenvectors",
    "alignment/subspace": "overlap of top eigenspaces",
    "variance/noise": "variance of a minibatch's gradient",
    "variance/shift": "shift by the perturbation, squared",
    "variance/perturbed": "error of the perturbed gradient",
    "variance/bound": "its bound: variance + shift",
    "variance/ratio": "error / bound",
    "variance/perturbation": "norm of the perturbation",
}
_CLIENT_GAP = re.compile(r"clients/gap_([\d.e-]+)_(start|end)")
_PERCENTILES = ("_p10", "_p90")


def table_of(report: "Report") -> Table:
    """The measures around w, Euclidean and scale-free, then those across clients.

    A cell is `value ± standard error`, or `mean (10th to 90th percentile)` over clients.
    """
    columns = list(report.frame[["round", "split", "n"]].drop_duplicates().itertuples(index=False))
    values: dict[tuple[int, str], dict[str, float]] = {}
    for row in report.frame.itertuples(index=False):
        values.setdefault((row.round, row.split), {})[row.metric] = row.value  # pyright: ignore
    several = len({round for round, _, _ in columns}) > 1
    header = [
        f"round {round}, {split} (n = {n:,})" if several else f"{split} (n = {n:,})"
        for round, split, n in columns
    ]
    hidden = ("_se", *_PERCENTILES)
    metrics = [m for m in dict.fromkeys(report.frame["metric"]) if not m.endswith(hidden)]
    metrics.sort(key=_group)
    rows = tuple(
        (label(m), *(_cell(values[round, split], m) for round, split, _ in columns))
        for m in metrics
    )
    return Table(("measure", *header), rows, left=1)


def _group(metric: str) -> int:
    return 2 if "/" in metric.removeprefix(SCALE_FREE) else int(metric.startswith(SCALE_FREE))


def wide(report: "Report") -> pd.DataFrame:
    """One row for each round and split, one column for each measure."""
    index = ["round", "split", "n"]
    frame = report.frame.pivot_table("value", index, "metric", sort=False)
    return frame.reset_index().rename_axis(columns=None)


def label(metric: str) -> str:
    """A metric's name for readers."""
    name = metric.removeprefix(SCALE_FREE)
    kind, _, rho = name.rpartition("_")
    if found := _CLIENT_GAP.fullmatch(name):
        shown = f"clients' SAM gap at {'w' if found[2] == 'start' else 'y_i'}, rho {found[1]}"
    elif kind in _NAMES and rho[:1].isdigit():
        shown = f"{_NAMES[kind]}, rho {rho}"
    elif name.startswith("lambda") and name[6:].isdigit():
        shown = f"lambda {name[6:]}"
    else:
        shown = _NAMES.get(name, name)
    return f"scale-free {shown}" if metric.startswith(SCALE_FREE) else shown


def _cell(values: Mapping[str, float], metric: str) -> str:
    if metric not in values:
        return ""
    text, error = f"{values[metric]:.4g}", values.get(f"{metric}_se")
    if error is not None:
        return f"{text} ± {error:.1g}"
    low, high = (values.get(metric + end) for end in _PERCENTILES)
    return text if low is None else f"{text} ({low:.3g} to {high:.3g})"
