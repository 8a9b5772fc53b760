"""Rules of `stop`, which end a trial before its last round."""

from collections.abc import Mapping

from tuning.config import Plateau, Stop

Rows = Mapping[int, Mapping[str, float]]

# `stop.accuracy` is about the first of these that there is.
_ACCURACIES = ("validation/accuracy", "test/accuracy")


def reason(stop: Stop, rows: Rows, metric: str, mode: str) -> str | None:
    """Describe the rule that holds after the last of these rounds, if there is one."""
    if not rows:
        return None
    last = max(rows)
    if stop.rounds is not None and last >= stop.rounds:
        return f"round {last}: stop.rounds = {stop.rounds}"
    row = rows[last]
    measured = next((name for name in _ACCURACIES if name in row), None)
    if stop.accuracy is not None and measured and row[measured] >= stop.accuracy:
        value = f"{measured} {row[measured]:.4f}"
        return f"round {last}: {value} reached stop.accuracy = {stop.accuracy}"
    if stop.seconds is not None:
        seconds = sum(row.get("time/round_s", 0.0) for row in rows.values())
        if seconds >= stop.seconds:
            return (
                f"round {last}: {seconds:.1f} s of training passed stop.seconds = {stop.seconds:g}"
            )
    if stop.plateau is not None:
        return _plateau(stop.plateau, rows, metric, mode)
    return None


def needs_metrics(stop: Stop) -> bool:
    """Return True if a rule needs the evaluations, so that the trial must wait for them."""
    return stop.accuracy is not None or stop.plateau is not None


def _plateau(plateau: Plateau, rows: Rows, metric: str, mode: str) -> str | None:
    sign = 1 if mode == "max" else -1
    values = [(round, sign * row[metric]) for round, row in sorted(rows.items()) if metric in row]
    if not values:
        return None
    best_round, best = values[0]
    for round, value in values[1:]:
        if value > best + plateau.min_change:
            best_round, best = round, value
    last = values[-1][0]
    if last - best_round < plateau.rounds:
        return None
    return (
        f"round {last}: no better {metric} than {sign * best:.4f} of round {best_round} "
        f"for stop.plateau.rounds = {plateau.rounds}"
    )
