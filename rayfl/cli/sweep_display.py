"""Display of a sweep: its plan, the progress of its trials, and the result."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rayfl.analysis.states import counted
from rayfl.cli.analysis import show
from rayfl.cli.sweep_plan import describe, listing, quantity
from rayfl.cli.sweep_progress import SweepProgress
from rayfl.cli.terminal import Display, duration, say, this_command
from rayfl.text import redacted

if TYPE_CHECKING:
    from tuning.callbacks import TrialUpdate
    from tuning.config import Sweep
    from tuning.plan import PlannedTrial
    from tuning.sweep import SweepResult, SweepStart

_PLAIN_SECONDS = 10.0
_PLAIN_SECONDS_LONG = 60.0
"""Time between plain lines while no trial ends."""
_MOST_RUNNING = 12  # rows of the live table
_OTHER_LINES = 6
"""Lines of the live display beside the table; it cannot be redrawn if it exceeds the terminal."""


class SweepDisplay(Display):
    """A table of the trials that run."""

    def __init__(self, console: Console):
        self._progress = SweepProgress()
        self._start: SweepStart | None = None
        super().__init__(console)
        self._live.transient = True

    def __rich__(self) -> RenderableType:
        if self._start is None:
            return Text(self._line())
        progress = self._progress
        first = ", ".join(filter(None, [progress.counts(), self._line() or progress.time_left()]))
        lines = [line for line in (first, progress.best()) if line]
        heading = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        return Group(*heading, *([self._table()] if progress.running else []))

    def start(self, start: "SweepStart") -> None:
        """Show the plan, before the trials start."""
        self._start = start
        self._progress.plan = start.plan
        self._console.print(escape(describe(start.plan)))
        if start.ended:
            self._console.print(f"{quantity(start.ended, 'trial')} done before")
        self.phase("starting the actors")

    def update(self, update: "TrialUpdate") -> None:
        """Show the progress or the new state of a trial."""
        changed = self._progress.update(update)
        if update.state == "running":
            self._text, self._is_preparing = "", False
        if not self._start:  # the plan tells which trials are infeasible
            return
        if changed and update.state in ("failed", "infeasible"):
            trial, reason = escape(str(update.trial)), escape(update.reason)
            self._console.print(f"{update.state}: {trial}: {reason}")
        # Plain lines are rarer while no trial ends.
        is_end = changed and update.state != "running"
        if not self._is_live and self._is_due(_PLAIN_SECONDS if is_end else _PLAIN_SECONDS_LONG):
            parts = [self._progress.counts(), self._progress.time_left(), self._progress.best()]
            self._console.print(", ".join(filter(None, parts)))

    def interrupted(self) -> None:
        done = self._progress.counts() if self._start else "before the first trial"
        self._console.print(f"stopped: {done}; the same command goes on:", markup=False)
        self._console.print(f"  {this_command()}", markup=False)

    def conclude(self, result: "SweepResult", sweep: "Sweep", took: float) -> None:
        """Show the final table, the trials without a result, and the commands that show more."""
        from rayfl.analysis.tables import table_of
        from tuning.results import summary

        found = summary(result.rows, sweep)
        show(table_of(found), found.rows, "table", found.notes)
        ended = counted(row.state for row in result.rows)
        say(f"{ended}, in {duration(took)}; MLflow run {result.parent_id}", *_failures(result))
        uri = next((e.tracking.uri for row in result.rows if (e := row.trial.experiment)), None)
        name = "test/accuracy" if sweep.metric == "validation/accuracy" else sweep.metric
        more = [
            "--where",
            f"sweep={sweep.name}",
            "--metric",
            name,
            *(["--uri", redacted(uri)] if uri else []),
        ]
        say(f"its answers: {shlex.join(['rayfl', 'results', *more])}")
        if self._start:
            say(f"to look at it: {self._start.ui_command}", f"then open {self._start.page}")

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


def _failures(result: "SweepResult") -> Iterator[str]:
    """List the trials that failed or are infeasible, grouped by reason."""
    logs = {row.trial.hash: row.log for row in result.rows if row.log is not None}

    def show(trial: "PlannedTrial") -> str:
        return f"{trial}  cat {logs[trial.hash]}" if trial.hash in logs else str(trial)

    for state in ("failed", "infeasible"):
        ended = [(row.trial, row.reason) for row in result.rows if row.state == state]
        yield from listing(ended, f"{state}: ", show, "; --json lists all")
    if result.ray_logs:
        yield f"Ray's logs are in {result.ray_logs}"
