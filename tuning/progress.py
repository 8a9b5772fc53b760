"""What a sweep shows: its plan, the trials as they come and go, and the table at the end."""

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tuning.outcome import STATES, counted, summary_table

if TYPE_CHECKING:
    from tuning.config import Sweep
    from tuning.plan import Plan, Trial
    from tuning.sweep import Result, Start

_PLAIN_SECONDS = 10.0
_PLAIN_SECONDS_LONG = 60.0
"""Between plain lines while no trial ends."""
_NEVER_CUT = 10_000  # columns: a terminal may wrap the table, but it must not be shortened
_MOST_RUNNING = 12  # rows of the live table
_OTHER_LINES = 6
"""Of the live display: below a terminal's height, or it could not be drawn over."""


@dataclass
class _Seen:
    """What is known of a trial."""

    trial: "Trial"
    state: str
    rounds: int
    value: float | None
    first: int = 0
    """Round after which this command took it up."""
    ran: bool = False
    """Whether this command ran it."""


class Progress:
    """A live table on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._seen: dict[str, _Seen] = {}
        self._text = "preparing"
        self._start: Start | None = None
        self._began: float | None = None
        """When the first trial started."""
        self._printed = time.monotonic()
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._display)

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
        self._console.print(escape(describe(start.plan)))
        if start.ended:
            self._console.print(f"{start.ended} trials were done before")

    def watch(
        self, trial: "Trial", state: str, rounds: int, value: float | None, reason: str
    ) -> None:
        """Something happened to a trial."""
        before = self._seen.get(trial.hash)
        seen = self._seen[trial.hash] = replace(
            before or _Seen(trial, state, rounds, value), state=state, rounds=rounds, value=value
        )
        changed = before is None or before.state != state
        if state == "running":
            seen.ran, seen.first = True, rounds if reason else seen.first
            if self._began is None:
                self._began, self._text = time.monotonic(), ""
        if changed and state in ("failed", "infeasible"):
            self._console.print(f"{state}: {escape(str(trial))}: {escape(reason)}")
        if not self._console.is_terminal and self._start is not None:
            self._print_line(is_end=changed and state != "running")

    def interrupted(self) -> None:
        """Say what is left of a sweep that the user stopped."""
        if self._start is None:
            self._console.print("stopped before the first trial")
            return
        self._console.print(f"stopped: {self._line()}; the same command goes on")

    def conclude(self, result: "Result", sweep: "Sweep", took: float) -> None:
        """The table at the end, and what tells more."""
        console = Console(highlight=False, soft_wrap=True)
        Console(highlight=False, width=_NEVER_CUT).print(summary_table(result, sweep))
        console.print(f"{counted(result)}, in {_duration(took)}; MLflow run {result.parent_id}")
        for row in result.rows:
            if row.state in ("failed", "infeasible"):
                console.print(f"{row.state}: {escape(str(row.trial))}: {escape(row.reason)}")
                if row.log is not None:
                    console.print(f"    cat {row.log}")
        if self._start:
            console.print(f"to look at it: {escape(self._start.ui_command)}")

    def _print_line(self, is_end: bool) -> None:
        """Say where the sweep is, if a trial has ended and from time to time."""
        now = time.monotonic()
        if now - self._printed >= (_PLAIN_SECONDS if is_end else _PLAIN_SECONDS_LONG):
            self._printed = now
            self._console.print(", ".join(filter(None, [self._line(), self._left(), self._best()])))

    def _display(self) -> RenderableType:
        if self._start is None:
            return Text(self._text)
        left = self._text or self._left()
        lines = [", ".join(filter(None, [self._line(), left])), self._best()]
        heading = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line]
        return Group(*heading, self._table())

    def _table(self) -> Table:
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("trial", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("round", justify="right", no_wrap=True)
        table.add_column(self._plan.sweep.metric, justify="right", no_wrap=True)
        running = [seen for seen in self._trials if seen.state == "running"]
        most = max(1, min(_MOST_RUNNING, self._console.height - _OTHER_LINES))
        for seen in running[:most]:
            value = f"{seen.value:.4f}" if seen.value is not None else ""
            table.add_row(escape(seen.trial.settings), f"{seen.rounds}/{self._rounds(seen)}", value)
        if len(running) > most:
            table.add_row(f"and {len(running) - most} more", "", "")
        return table

    def _line(self) -> str:
        states = Counter(seen.state for seen in self._trials)
        shown = ", ".join(f"{states[s]} {s.replace('_', ' ')}" for s in STATES if states[s])
        done = sum(states[s] for s in STATES)
        parts = [f"{done} of {self._count} trials done"]
        parts += [f"({shown})"] if shown else []
        return " ".join(parts) + (f", {states['running']} running" if states["running"] else "")

    def _best(self) -> str:
        """The best trial so far."""
        good = ("running", "finished", "stopped_early")
        values = {
            seen.value: seen
            for seen in self._trials
            if seen.value is not None and seen.state in good
        }
        if not values:
            return ""
        sweep = self._plan.sweep
        best = max(values) if sweep.mode == "max" else min(values)
        return f"best {sweep.metric} {best:.4f}: {values[best].trial.settings}"

    def _left(self) -> str:
        """How long it will take if the trials that are left run like those before."""
        shares = [self._share(seen) for seen in self._trials if seen.ran]
        done = sum(share for share, _ in shares)
        if not done or self._began is None:
            return ""
        left = self._count - len(self._seen) + sum(rest for _, rest in shares)
        return f"{_duration((time.monotonic() - self._began) / done * left)} left"

    def _share(self, seen: _Seen) -> tuple[float, float]:
        """Which share of a trial this command has run, and which is left to run."""
        rounds = self._rounds(seen)
        if seen.state != "running":
            return 1 - seen.first / rounds, 0.0
        return (seen.rounds - seen.first) / rounds, 1 - seen.rounds / rounds

    def _rounds(self, seen: _Seen) -> int:
        assert seen.trial.experiment is not None
        rounds = seen.trial.experiment.federation.rounds
        return min(rounds, self._plan.sweep.stop.rounds or rounds)

    @property
    def _trials(self) -> list[_Seen]:
        """A copy: the display is drawn by a thread of its own."""
        return list(self._seen.values())

    @property
    def _plan(self) -> "Plan":
        assert self._start is not None
        return self._start.plan

    @property
    def _count(self) -> int:
        """Of all trials, with those that a searcher will suggest."""
        impossible = sum(trial.problem is not None for trial in self._plan.trials)
        return max(self._plan.count + impossible, len(self._seen))


def describe(plan: "Plan") -> str:
    """The plan in some lines."""
    sweep, placement = plan.sweep, plan.placement
    impossible = [trial for trial in plan.trials if trial.problem]
    points = -(-(plan.count + len(impossible)) // len(sweep.seeds))
    lines = [
        f"sweep {sweep.name}: {plan.count + len(impossible)} trials ({points} points x "
        f"{len(sweep.seeds)} seeds), search {_name(sweep.search)}, scheduler {_name(sweep.scheduler)}",
        f"each trial: a server, and {placement.actors} client actors with {placement.share}",
        f"at once: {plan.at_once} now ({plan.room} client actors fit)"
        + (f", {plan.at_once_grown} once the cluster has grown" if plan.at_once_grown else ""),
    ]
    if plan.unshared:
        lines.append(
            f"base.checkpoint.dir = {plan.unshared!r}: a trial that moves to another node starts anew there, "
            "unless all nodes mount this directory; a URI such as s3://bucket/path is everywhere"
        )
    if plan.unshared_storage:
        lines.append(
            f"storage = {plan.unshared_storage!r}: pbt copies trials from node to node through this "
            "directory, so all nodes must mount it; or give a URI such as s3://bucket/path"
        )
    if impossible:
        lines.append(f"{len(impossible)} trials cannot run:")
        lines += [f"  {t.settings}: {t.problem}" for t in impossible]
    return "\n".join(lines)


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
