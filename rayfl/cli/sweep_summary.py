"""The results of a sweep: the table at its end, the best points, and the same as JSON."""

from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING

import pandas as pd
from rich.markup import escape
from rich.table import Table

from rayfl.analysis.aggregate import Aggregate, aggregate, ranked
from rayfl.analysis.metrics import Metric
from rayfl.analysis.states import counted
from rayfl.analysis.tables import short, spread
from rayfl.cli.terminal import table as new_table
from rayfl.text import written
from tuning.space import Point, task, text

if TYPE_CHECKING:
    from tuning.config import Sweep
    from tuning.sweep import SweepResult, TrialResult


_SHOWN = ("state", "reason", "rounds", "value", "run_id", "model_sha256")


def summary_table(result: "SweepResult", sweep: "Sweep") -> Table:
    """Make a row for every point: its values, and the metric's mean and spread over the finished seeds."""
    m, keys = Metric(sweep.metric, sweep.metric), list(sweep.space)
    names = [short(key, keys) for key in keys]
    table = new_table(*names, m.name, "seeds", "")
    best = best_points(result, sweep)
    for rows in _by_point(result):
        point, found = rows[0].trial.point, _aggregate(rows)
        cells = [escape(written(point[key])) if key in point else "" for key in keys]
        notes = counted(row.state for row in rows if row.state != "finished")
        words = " ".join(filter(None, ["best" * (point in best), notes]))
        style = "bold" if point in best else None
        numbers = spread(m, found.mean, found.std), f"{found.n}/{len(rows)}"
        table.add_row(*cells, *numbers, words, style=style)
    return table


def best_points(result: "SweepResult", sweep: "Sweep") -> list[Point]:
    """Return the best point of each task, by the rule of `rayfl.analysis.aggregate.ranked`."""
    tasks: dict[Hashable, list[tuple[Point, Aggregate]]] = {}
    for rows in _by_point(result):
        point = rows[0].trial.point
        tasks.setdefault(task(point), []).append((point, _aggregate(rows)))
    rankings = [
        (found, ranked([aggregate for _, aggregate in found], sweep.mode == "max"))
        for found in tasks.values()
    ]
    return [found[ranking[0]][0] for found, ranking in rankings if ranking]


def as_json(result: "SweepResult", sweep: "Sweep", took: float) -> dict:
    """Build the object that `rayfl sweep --json` prints at its end."""
    return {
        "sweep": sweep.name,
        "run_id": result.parent_id,
        "metric": sweep.metric,
        "counts": dict(Counter(row.state for row in result.rows)),
        "best": best_points(result, sweep),
        "seconds": round(took, 2),
        "trials": [
            {
                "config_hash": row.trial.hash,
                "point": row.trial.point,
                "seed": row.trial.seed,
                **{key: getattr(row, key) for key in _SHOWN},
                "log": str(row.log) if row.log else None,
            }
            for row in result.rows
        ],
    }


def _by_point(result: "SweepResult") -> list[list["TrialResult"]]:
    """Group the rows by point."""
    points: dict[str, list[TrialResult]] = {}
    for row in result.rows:
        points.setdefault(text(row.trial.point), []).append(row)
    return list(points.values())


def _aggregate(rows: "list[TrialResult]") -> Aggregate:
    """Aggregate the sweep's metric over the seeds of a point."""
    frame = pd.DataFrame({"state": [r.state for r in rows], "value": [r.value for r in rows]})
    return aggregate(frame, "value")
