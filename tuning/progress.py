"""What a sweep shows: its plan, the trials as they come and go, and the table at the end."""

import os
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tuning.space import Point, task

if TYPE_CHECKING:
    from tuning.config import Sweep
    from tuning.plan import Plan
    from tuning.sweep import Result, Row, Start

_PLAIN_SECONDS = 10.0
_NEVER_CUT = 10_000  # columns: a terminal may wrap the table, but it must not be shortened
_MOST_RUNNING = 12  # rows of the live table
_STATES = ("finished", "stopped_early", "failed", "infeasible")


@dataclass
class _Seen:
    """What is known of a trial."""

    state: str
    rounds: int
    value: float | None


class Progress:
    """A live table on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._seen: dict[str, _Seen] = {}
        self._text = "preparing"
        self._start: Start | None = None
        self._began = self._printed = time.monotonic()
        self._done_before = 0
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._table)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.transient = True
        self._live.stop()

    def say(self, text: str) -> None:
        """Show what is going on. Fit for a signal handler."""
        self._text = text
        if not self._console.is_terminal:
            os.write(2, f"{text}\n".encode())

    def start(self, start: "Start") -> None:
        """Show the plan, before the trials start."""
        self._start, self._text = start, "starting the actors"
        self._began, self._done_before = time.monotonic(), self._done()
        self._console.print(escape(describe(start.plan)))
        if start.ended:
            self._console.print(f"{start.ended} trials were done before")

    def watch(self, hash: str, state: str, rounds: int, value: float | None, reason: str) -> None:
        """Something happened to a trial."""
        before = self._seen.get(hash)
        self._seen[hash] = _Seen(state, rounds, value)
        changed = before is None or before.state != state
        if changed and state in ("failed", "infeasible"):
            self._console.print(f"{state} {hash}: {escape(reason)}")
        if self._console.is_terminal or self._start is None:
            return
        now = time.monotonic()
        if state != "running" and changed and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            self._console.print(self._line())

    def interrupted(self) -> None:
        """Say what is left of a sweep that the user stopped."""
        self._console.print(f"stopped: {self._line()}; the same command goes on")

    def conclude(self, result: "Result", sweep: "Sweep", took: float) -> None:
        """The table at the end, and what tells more."""
        console = Console(highlight=False, soft_wrap=True)
        Console(highlight=False, width=_NEVER_CUT).print(summary_table(result, sweep))
        console.print(f"{counted(result)}, in {took:.0f} s; MLflow run {result.parent_id}")
        for row in result.rows:
            if row.state in ("failed", "infeasible"):
                console.print(f"{row.state} {where(row)}: {escape(row.reason)}")
                if row.log is not None:
                    console.print(f"    cat {row.log}")
        if self._start:
            console.print(f"to look at it: {escape(self._start.ui_command)}")

    def _done(self) -> int:
        return sum(seen.state != "running" for seen in self._seen.values())

    def _line(self) -> str:
        count = self._start.plan.count if self._start else 0
        states = Counter(seen.state for seen in self._seen.values())
        shown = ", ".join(f"{states[s]} {s.replace('_', ' ')}" for s in _STATES if states[s])
        running = [s for s in self._seen.values() if s.state == "running"]
        parts = [f"{self._done()} of {max(count, len(self._seen))} trials done"]
        parts += [f"({shown})"] if shown else []
        return " ".join(parts) + f", {len(running)} running{self._best()}{self._left(count)}"

    def _best(self) -> str:
        if self._start is None:
            return ""
        sweep = self._start.plan.sweep
        values = [seen.value for seen in self._seen.values() if seen.value is not None]
        best = max if sweep.mode == "max" else min
        return f", best {sweep.metric} {best(values):.4f}" if values else ""

    def _left(self, count: int) -> str:
        done = self._done() - self._done_before
        if not done or self._start is None:
            return ""
        seconds = (time.monotonic() - self._began) / done * (count - self._done())
        return f", {_duration(seconds)} left"

    def _table(self) -> Table:
        table = Table(title=self._line() if self._start else self._text, box=None)
        for name in ("trial", "round", self._start.plan.sweep.metric if self._start else ""):
            table.add_column(name)
        running = [(h, seen) for h, seen in self._seen.items() if seen.state == "running"]
        for hash, seen in running[:_MOST_RUNNING]:
            value = f"{seen.value:.4f}" if seen.value is not None else ""
            table.add_row(hash, str(seen.rounds), value)
        return table


def describe(plan: "Plan") -> str:
    """The plan in some lines."""
    sweep, placement = plan.sweep, plan.placement
    impossible = [trial for trial in plan.trials if trial.problem]
    share = f"{placement.cpus:g} CPU" + (f", {placement.gpus:g} GPU" if placement.gpus else "")
    points = -(-(plan.count + len(impossible)) // len(sweep.seeds))
    lines = [
        f"sweep {sweep.name}: {plan.count + len(impossible)} trials ({points} points x "
        f"{len(sweep.seeds)} seeds), search {_name(sweep.search)}, scheduler {_name(sweep.scheduler)}",
        f"each trial: a server, and {placement.actors} client actors with {share}",
        f"at once: {plan.at_once} now ({plan.room} client actors fit)"
        + (f", {plan.at_once_grown} once the cluster has grown" if plan.at_once_grown else ""),
    ]
    if plan.unshared:
        lines.append(
            f"checkpoint.dir = {plan.unshared!r}: a trial that moves to another node starts anew there, "
            "unless all nodes mount this directory; a URI such as s3://bucket/path is everywhere"
        )
    if impossible:
        lines.append(f"{len(impossible)} trials cannot run:")
        lines += [f"  {_point(t.point)} seed={t.seed}: {t.problem}" for t in impossible]
    return "\n".join(lines)


def summary_table(result: "Result", sweep: "Sweep") -> Table:
    """A row for every point: its values, and mean and spread of the metric over the seeds."""
    points: dict[str, list[Row]] = {}
    for row in result.rows:
        points.setdefault(_point(row.trial.point), []).append(row)
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
        cells = [str(point.get(key, "")) for key in keys]
        table.add_row(*cells, f"{len(values)}/{len(rows)}", mean, spread, f"{mark} {notes}".strip())
    return table


def best_points(result: "Result", sweep: "Sweep") -> list[Point]:
    """The best point of each task, by the mean of the metric over all of its seeds."""
    sign = 1 if sweep.mode == "max" else -1
    means: dict[Hashable, list[tuple[float, Point]]] = {}
    points: dict[str, list[Row]] = {}
    for row in result.rows:
        points.setdefault(_point(row.trial.point), []).append(row)
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
    return ", ".join(f"{states[s]} {s.replace('_', ' ')}" for s in _STATES if states[s])


def where(row: "Row") -> str:
    """Which trial a row is about."""
    return f"{row.trial.hash} ({_point(row.trial.point)} seed={row.trial.seed})"


def _is_good(row: "Row") -> bool:
    return row.state in ("finished", "stopped_early")


def _point(point: Point) -> str:
    return " ".join(f"{key}={value}" for key, value in point.items())


def _name(choice: object) -> str:
    from tuning.config import SCHEDULER, SEARCH
    from tuning.searches import Search

    return (SEARCH if isinstance(choice, Search) else SCHEDULER).dump(choice)["name"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
