"""What a sweep has come to: the table at the end, the best points, and the same for programs."""

from collections import Counter
from collections.abc import Hashable
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich.table import Table

from tuning.space import Point, shown_value, task, text

if TYPE_CHECKING:
    from tuning.config import Sweep
    from tuning.sweep import Result, Row

STATES = ("finished", "stopped_early", "failed", "infeasible")


def summary_table(result: "Result", sweep: "Sweep") -> Table:
    """A row for every point: its values, and mean and spread of the metric over the seeds."""
    points: dict[str, list[Row]] = {}
    for row in result.rows:
        points.setdefault(text(row.trial.point), []).append(row)
    keys = list(sweep.space)
    table = Table(*keys, "seeds", sweep.metric, "spread", "", header_style="bold")
    best = best_points(result, sweep)
    for rows in points.values():
        values = [row.value for row in rows if row.value is not None and _is_good(row)]
        mean = f"{fmean(values):.4f}" if values else ""
        spread = f"{stdev(values):.4f}" if len(values) > 1 else ""
        states = Counter(row.state for row in rows if row.state != "finished")
        notes = ", ".join(f"{n} {s.replace('_', ' ')}" for s, n in states.items())
        point = rows[0].trial.point
        mark = "best" if point in best else ""
        cells = [shown_value(point[key]) if key in point else "" for key in keys]
        table.add_row(*cells, f"{len(values)}/{len(rows)}", mean, spread, f"{mark} {notes}".strip())
    return table


def best_points(result: "Result", sweep: "Sweep") -> list[Point]:
    """The best point of each task, by the mean of the metric over all of its seeds."""
    sign = 1 if sweep.mode == "max" else -1
    means: dict[Hashable, list[tuple[float, Point]]] = {}
    points: dict[str, list[Row]] = {}
    for row in result.rows:
        points.setdefault(text(row.trial.point), []).append(row)
    for rows in points.values():
        if all(_is_good(row) and row.value is not None for row in rows):
            mean = fmean(row.value for row in rows if row.value is not None)
            point = rows[0].trial.point
            means.setdefault(task(point), []).append((sign * mean, point))
    return [max(found, key=lambda pair: pair[0])[1] for found in means.values()]


def as_json(result: "Result", sweep: "Sweep", took: float) -> dict:
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


def counted(result: "Result") -> str:
    """How many trials ended how."""
    states = Counter(row.state for row in result.rows)
    return ", ".join(f"{states[s]} {s.replace('_', ' ')}" for s in STATES if states[s])


def _is_good(row: "Row") -> bool:
    return row.state in ("finished", "stopped_early")
