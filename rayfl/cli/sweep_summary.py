"""The results of a sweep: the table at its end, the best points, and the same as JSON."""

from collections import Counter
from typing import TYPE_CHECKING

from rayfl.analysis.naming import row_name, spread
from tuning.results import summary
from tuning.space import Point

if TYPE_CHECKING:
    from rayfl.analysis.aggregate import Summary
    from tuning.config import Sweep
    from tuning.sweep import SweepResult


_SHOWN = ("state", "reason", "rounds", "value", "run_id", "model_sha256")


def best_points(result: "SweepResult", sweep: "Sweep") -> list[Point]:
    """Return the best point of each task, by the rule of `rayfl.analysis.ranking.ranked`."""
    found = summary(result.rows, sweep)
    first = [result.rows[members.index[0]] for _, members in found.groups]
    return [first[i].trial.point for i in found.best[0]]


def best_in_words(found: "Summary", seeds: int) -> str:
    """Return the best row of each task, with its mean over how many of the seeds; empty if there is none."""
    m = found.metrics[0]
    rows = []
    for i in found.best[0]:
        a = found.aggregates[i][0]
        name = row_name(found.by, found.groups[i][0])
        of_all = f" of {seeds}" if a.n != seeds else ""
        rows.append(f"{spread(m, a.mean, a.std)} (n={a.n}{of_all}): {name}")
    return f"best {m.name} {'; '.join(rows)}" if rows else ""


def as_json(result: "SweepResult", sweep: "Sweep", took: float) -> dict:
    """Build the object that `rayfl sweep --json` prints at its end."""
    return {
        "sweep": sweep.name,
        "run_id": result.parent_id,
        "metric": sweep.metric,
        "counts": dict(Counter(row.state for row in result.rows)),
        "best": best_points(result, sweep),
        "notes": list(summary(result.rows, sweep).notes),
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
