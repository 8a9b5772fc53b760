"""What a sweep shows: its plan, the trials as they come and go, and what became of them."""

import os
import shlex
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tuning.states import ENDED, SUCCEEDED, counted

if TYPE_CHECKING:
    from tuning.config import Sweep
    from tuning.plan import PlannedTrial, SweepPlan
    from tuning.sweep import SweepResult, SweepStart

_PLAIN_SECONDS = 10.0
_PLAIN_SECONDS_LONG = 60.0
"""Between plain lines while no trial ends."""
_NEVER_CUT = 10_000  # columns: a terminal may wrap the table, but it must not be shortened
_MOST_RUNNING = 12  # rows of the live table
_MOST_LISTED = 10  # trials with the same problem
_OTHER_LINES = 6
"""Of the live display: below a terminal's height, or it could not be drawn over."""


@dataclass
class _TrialStatus:
    """What is known of a trial."""

    trial: "PlannedTrial"
    state: str
    rounds: int
    value: float | None
    first: int = 0
    """Round after which this command took it up."""
    ran: bool = False
    """Whether this command ran it."""


class SweepDisplay:
    """A live table on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._seen: dict[str, _TrialStatus] = {}
        self._text = "preparing"
        self._start: SweepStart | None = None
        self._began: tuple[float, float] | None = None
        """When the first rounds were there, and how many trials these were."""
        self._printed = time.monotonic()
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._display)

    def __enter__(self) -> "SweepDisplay":
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

    def start(self, start: "SweepStart") -> None:
        """Show the plan, before the trials start."""
        self._start, self._text = start, "starting the actors"
        self._console.print(escape(describe(start.plan)))
        if start.ended:
            self._console.print(f"{_number(start.ended, 'trial')} done before")

    def watch(
        self, trial: "PlannedTrial", state: str, rounds: int, value: float | None, reason: str
    ) -> None:
        """Something happened to a trial."""
        before = self._seen.get(trial.hash)
        seen = self._seen[trial.hash] = replace(
            before or _TrialStatus(trial, state, rounds, value),
            state=state,
            rounds=rounds,
            value=value,
        )
        changed = before is None or before.state != state
        if state == "running":
            seen.ran, seen.first = True, rounds if reason else seen.first
            self._text = ""
            if self._began is None and rounds > seen.first:  # by then the actors have started
                self._began = time.monotonic(), self._done_here()
        if changed and state in ("failed", "infeasible") and self._start:  # else the plan says it
            self._console.print(f"{state}: {escape(str(trial))}: {escape(reason)}")
        if self._start and not self._console.is_terminal:
            self._print_line(is_end=changed and state != "running")

    def interrupted(self) -> None:
        """Say what is left of a sweep that the user stopped."""
        if self._start is None:
            self._console.print("stopped before the first trial")
            return
        self._console.print(f"stopped: {self._line()}; the same command goes on")

    def conclude(self, result: "SweepResult", sweep: "Sweep", took: float) -> None:
        """The table at the end, and what tells more."""
        from rayfl.cli.sweep_summary import best_points, summary_table

        console = Console(highlight=False, soft_wrap=True)
        Console(highlight=False, width=_NEVER_CUT).print(summary_table(result, sweep))
        if len(best_points(result, sweep)) > 1:
            console.print("best: of the points with the same data, partition and number of clients")
        ended = counted(row.state for row in result.rows)
        console.print(f"{ended}, in {_duration(took)}; MLflow run {result.parent_id}")
        logs = {row.trial.hash: row.log for row in result.rows if row.log is not None}
        for state in ("failed", "infeasible"):
            ended = [(row.trial, row.reason) for row in result.rows if row.state == state]
            for reason, trials in _by_reason(ended).items():
                console.print(f"{state}: {escape(reason)}")
                for trial in trials[:_MOST_LISTED]:
                    log = f"  cat {logs[trial.hash]}" if trial.hash in logs else ""
                    console.print(f"    {escape(str(trial))}{log}")
                if len(trials) > _MOST_LISTED:
                    console.print(f"    and {len(trials) - _MOST_LISTED} more; --json lists all")
        uri = next((e.tracking.uri for row in result.rows if (e := row.trial.experiment)), None)
        more = ["--where", f"sweep={sweep.name}", *(["--uri", uri] if uri else [])]
        console.print(f"its answers: {escape(shlex.join(['rayfl', 'results', *more]))}")
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
        running = [seen for seen in self._trials if seen.state == "running"]
        return Group(*heading, *([self._table(running)] if running else []))

    def _table(self, running: list[_TrialStatus]) -> Table:
        most = max(1, min(_MOST_RUNNING, self._console.height - _OTHER_LINES))
        rows = [("trial", "round", self._plan.sweep.metric)]
        for seen in running[:most]:
            value = f"{seen.value:.4f}" if seen.value is not None else ""
            rows.append((self._brief(seen), f"{seen.rounds}/{self._rounds(seen)}", value))
        header, *rows = rows + [(f"and {len(running) - most} more", "", "")] * (len(running) > most)
        table = Table(box=None, header_style="dim", pad_edge=False)
        for i, name in enumerate(header):
            # Only the first column may be cut.
            widest = max(len(row[i]) for row in (header, *rows)) if i else None
            justify = "right" if i else "left"
            table.add_column(name, no_wrap=True, min_width=widest, justify=justify)
        for row in rows:
            table.add_row(*map(escape, row))
        return table

    def _line(self) -> str:
        states = Counter(seen.state for seen in self._trials)
        shown = counted(seen.state for seen in self._trials)
        done = sum(states[s] for s in ENDED)
        parts = [f"{done} of {self._count} trials done"]
        parts += [f"({shown})"] if shown else []
        return " ".join(parts) + (f", {states['running']} running" if states["running"] else "")

    def _best(self) -> str:
        """The best trial so far."""
        good = ("running", *SUCCEEDED)
        values = {
            seen.value: seen
            for seen in self._trials
            if seen.value is not None and seen.state in good
        }
        if not values:
            return ""
        sweep = self._plan.sweep
        best = max(values) if sweep.mode == "max" else min(values)
        return f"best {sweep.metric} {best:.4f}: {self._brief(values[best])}"

    def _left(self) -> str:
        """How long it will take if the trials that are left run like those before."""
        if self._began is None:
            return ""
        began, before = self._began
        done = self._done_here() - before
        running = [seen for seen in self._trials if seen.state == "running"]
        left = sum(1 - seen.rounds / self._rounds(seen) for seen in running)
        left += self._count - len(self._seen)
        return f"{_duration((time.monotonic() - began) / done * left)} left" if done > 0 else ""

    def _done_here(self) -> float:
        """Trials that this command has run; parts of trials count as such."""
        ran = [(seen, self._rounds(seen)) for seen in self._trials if seen.ran]
        return sum(
            ((seen.rounds if seen.state == "running" else rounds) - seen.first) / rounds
            for seen, rounds in ran
        )

    def _brief(self, seen: _TrialStatus) -> str:
        """A trial's settings, shorter than as overrides."""
        from rayfl.analysis.tables import setting

        return " ".join([*setting(seen.trial.point), f"seed={seen.trial.seed}"])

    def _rounds(self, seen: _TrialStatus) -> int:
        assert seen.trial.experiment is not None
        rounds = seen.trial.experiment.federation.rounds
        return min(rounds, self._plan.sweep.stop.rounds or rounds)

    @property
    def _trials(self) -> list[_TrialStatus]:
        """A copy: the display is drawn by a thread of its own."""
        return list(self._seen.values())

    @property
    def _plan(self) -> "SweepPlan":
        assert self._start is not None
        return self._start.plan

    @property
    def _count(self) -> int:
        """Of all trials, with those that a searcher will suggest."""
        impossible = sum(trial.problem is not None for trial in self._plan.trials)
        return max(self._plan.count + impossible, len(self._seen))


def describe(plan: "SweepPlan") -> str:
    """The plan in some lines."""
    sweep, placement = plan.sweep, plan.placement
    impossible = [trial for trial in plan.trials if trial.problem]
    points = -(-(plan.count + len(impossible)) // len(sweep.seeds))
    lines = [
        f"sweep {sweep.name}: {_number(plan.count + len(impossible), 'trial')} "
        f"({_number(points, 'point')} x {_number(len(sweep.seeds), 'seed')}), "
        f"search {_name(sweep.search)}, scheduler {_name(sweep.scheduler)}",
        f"each trial: a server, and {_number(placement.actors, 'client actor')} with {placement.share}",
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
        lines.append(f"{_number(len(impossible), 'trial')} cannot run:")
    for problem, trials in _by_reason((t, t.problem or "") for t in impossible).items():
        lines += [f"  {problem}", *(f"    {t.settings}" for t in trials[:_MOST_LISTED])]
        if len(trials) > _MOST_LISTED:
            lines.append(f"    and {len(trials) - _MOST_LISTED} more")
    return "\n".join(lines)


def _by_reason(reasons: "Iterable[tuple[PlannedTrial, str]]") -> "dict[str, list[PlannedTrial]]":
    """The trials of each reason."""
    found: dict[str, list[PlannedTrial]] = {}
    for trial, reason in reasons:
        found.setdefault(reason, []).append(trial)
    return found


def _number(n: int, what: str) -> str:
    return f"{n} {what}" + "s" * (n != 1)


def _name(choice: object) -> str:
    from tuning.config import SCHEDULER, SEARCH
    from tuning.searchers import Search

    return (SEARCH if isinstance(choice, Search) else SCHEDULER).dump(choice)["name"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
