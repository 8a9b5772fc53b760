"""What a sweep has come to: the table at the end, the best points, and the same for programs."""

from collections import Counter
from collections.abc import Hashable, Iterable
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from rayfl.analysis.tables import short
from tuning.space import Point, shown_value, task, text
from tuning.states import SUCCEEDED, counted

if TYPE_CHECKING:
    from tuning.config import Sweep
    from tuning.sweep import SweepResult, TrialResult


def summary_table(result: "SweepResult", sweep: "Sweep") -> Table:
    """A row for every point: its values, and mean and spread of the metric over the seeds."""
    keys = list(sweep.space)
    names = [short(key, keys) for key in keys]
    table = Table(*names, sweep.metric, "seeds", "", header_style="bold", box=box.SIMPLE_HEAD)
    best = best_points(result, sweep)
    for rows in _by_point(result):
        values = [row.value for row in rows if row.value is not None and _is_good(row)]
        mean = f"{fmean(values):.4f}" if values else ""
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        notes = counted(row.state for row in rows if row.state != "finished")
        point = rows[0].trial.point
        is_best = point in best
        cells = [escape(shown_value(point[key])) if key in point else "" for key in keys]
        words = " ".join(filter(None, ["best" * is_best, notes]))
        style = "bold" if is_best else None
        table.add_row(*cells, mean + spread, f"{len(values)}/{len(rows)}", words, style=style)
    return table


def best_points(result: "SweepResult", sweep: "Sweep") -> list[Point]:
    """The best point of each task, by the mean of the metric over all of its seeds."""
    sign = 1 if sweep.mode == "max" else -1
    means: dict[Hashable, list[tuple[float, Point]]] = {}
    for rows in _by_point(result):
        if all(_is_good(row) and row.value is not None for row in rows):
            mean = fmean(row.value for row in rows if row.value is not None)
            point = rows[0].trial.point
            means.setdefault(task(point), []).append((sign * mean, point))
    return [max(found, key=lambda pair: pair[0])[1] for found in means.values()]


def as_json(result: "SweepResult", sweep: "Sweep", took: float) -> dict:
    """The object that `rayfl sweep --json` ends with."""
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
                "state": row.state,
                "reason": row.reason,
                "rounds": row.rounds,
                "value": row.value,
                "run_id": row.run_id,
                "model_sha256": row.model_sha256,
                "log": str(row.log) if row.log else None,
            }
            for row in result.rows
        ],
    }


def _by_point(result: "SweepResult") -> Iterable[list["TrialResult"]]:
    """The rows of each point."""
    points: dict[str, list[TrialResult]] = {}
    for row in result.rows:
        points.setdefault(text(row.trial.point), []).append(row)
    return points.values()


def _is_good(row: "TrialResult") -> bool:
    return row.state in SUCCEEDED
