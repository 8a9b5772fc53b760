"""Display of a sweep: its plan, the progress of its trials, and the result."""

import os
import shlex
import time
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rayfl.analysis.states import counted
from rayfl.cli.sweep_plan import describe, listing, quantity
from rayfl.cli.sweep_progress import SweepProgress, duration

if TYPE_CHECKING:
    from tuning.callbacks import TrialUpdate
    from tuning.config import Sweep
    from tuning.plan import PlannedTrial
    from tuning.sweep import SweepResult, SweepStart

_PLAIN_SECONDS = 10.0
_PLAIN_SECONDS_LONG = 60.0
"""Time between plain lines while no trial ends."""
_UNLIMITED_WIDTH = 10_000  # columns: the terminal may wrap the table, but rich must not shorten it
_MOST_RUNNING = 12  # rows of the live table
_OTHER_LINES = 6
"""Lines of the live display beside the table; it cannot be redrawn if it exceeds the terminal."""


class SweepDisplay:
    """Live table on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._progress = SweepProgress()
        self._text = "preparing"
        self._start: SweepStart | None = None
        self._printed = time.monotonic()
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self.__rich__)

    def __enter__(self) -> "SweepDisplay":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.transient = True
        self._live.stop()

    def __rich__(self) -> RenderableType:
        """Draw the present state."""
        if self._start is None:
            return Text(self._text)
        progress = self._progress
        first = ", ".join(filter(None, [progress.counts(), self._text or progress.time_left()]))
        lines = [line for line in (first, progress.best()) if line]
        heading = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        return Group(*heading, *([self._table()] if progress.running else []))

    def say(self, text: str) -> None:
        """Show a message. Safe in a signal handler."""
        self._text = text
        if not self._console.is_terminal:
            os.write(2, f"{text}\n".encode())

    def start(self, start: "SweepStart") -> None:
        """Show the plan, before the trials start."""
        self._start, self._text = start, "starting the actors"
        self._progress.plan = start.plan
        self._console.print(escape(describe(start.plan)))
        if start.ended:
            self._console.print(f"{quantity(start.ended, 'trial')} done before")

    def update(self, update: "TrialUpdate") -> None:
        """Show the progress or the new state of a trial."""
        changed = self._progress.update(update)
        if update.state == "running":
            self._text = ""
        if not self._start:  # the plan tells which trials are infeasible
            return
        if changed and update.state in ("failed", "infeasible"):
            trial, reason = escape(str(update.trial)), escape(update.reason)
            self._console.print(f"{update.state}: {trial}: {reason}")
        if not self._console.is_terminal:
            self._print_line(is_end=changed and update.state != "running")

    def interrupted(self) -> None:
        """Show the state of a sweep that the user stopped."""
        if self._start is None:
            self._console.print("stopped before the first trial")
            return
        self._console.print(f"stopped: {self._progress.counts()}; the same command goes on")

    def conclude(self, result: "SweepResult", sweep: "Sweep", took: float) -> None:
        """Show the final table, the trials without a result, and the commands that show more."""
        from rayfl.cli.sweep_summary import best_points, summary_table

        console = Console(highlight=False, soft_wrap=True)
        Console(highlight=False, width=_UNLIMITED_WIDTH).print(summary_table(result, sweep))
        if len(best_points(result, sweep)) > 1:
            console.print("best: of the points with the same data, partition and number of clients")
        ended = counted(row.state for row in result.rows)
        console.print(f"{ended}, in {duration(took)}; MLflow run {result.parent_id}")
        _print_failures(console, result)
        uri = next((e.tracking.uri for row in result.rows if (e := row.trial.experiment)), None)
        more = ["--where", f"sweep={sweep.name}", *(["--uri", uri] if uri else [])]
        console.print(f"its answers: {escape(shlex.join(['rayfl', 'results', *more]))}")
        if self._start:
            console.print(f"to look at it: {escape(self._start.ui_command)}")

    def _print_line(self, is_end: bool) -> None:
        """Print the progress at limited intervals, which are shorter after the end of a trial."""
        now, progress = time.monotonic(), self._progress
        if now - self._printed >= (_PLAIN_SECONDS if is_end else _PLAIN_SECONDS_LONG):
            self._printed = now
            parts = [progress.counts(), progress.time_left(), progress.best()]
            self._console.print(", ".join(filter(None, parts)))

    def _table(self) -> Table:
        assert self._start is not None
        running = self._progress.running
        most = max(1, min(_MOST_RUNNING, self._console.height - _OTHER_LINES))
        rows = [("trial", "round", self._start.plan.sweep.metric)]
        for status in running[:most]:
            value = f"{status.value:.4f}" if status.value is not None else ""
            rows.append((status.name, f"{status.rounds}/{self._progress.rounds(status)}", value))
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


def _print_failures(console: Console, result: "SweepResult") -> None:
    """Print the trials that failed or are infeasible, grouped by reason."""
    logs = {row.trial.hash: row.log for row in result.rows if row.log is not None}

    def show(trial: "PlannedTrial") -> str:
        return f"{trial}  cat {logs[trial.hash]}" if trial.hash in logs else str(trial)

    for state in ("failed", "infeasible"):
        ended = [(row.trial, row.reason) for row in result.rows if row.state == state]
        for line in listing(ended, f"{state}: ", show, "; --json lists all"):
            console.print(escape(line))
