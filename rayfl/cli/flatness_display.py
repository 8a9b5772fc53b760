"""The terminal while flatness is measured."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from rayfl.cli.terminal import Display

if TYPE_CHECKING:
    from rayfl.diagnostics.subjects import Subject
    from rayfl.diagnostics.sweeps import MeasurementStart

_PLAIN_SECONDS = 10.0


class FlatnessDisplay(Display):
    """A bar of the work that is done, and the time that is left."""

    def __init__(self, console: Console, live: bool = True):
        columns = BarColumn(None), TaskProgressColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, TextColumn("left"), expand=True)
        self._task = self._bar.add_task("", total=1.0)
        self._measuring = time.monotonic()
        super().__init__(console, live)

    def __rich__(self) -> RenderableType:
        return Group(self._bar, Text(self._line(), no_wrap=True, overflow="ellipsis"))

    def start(self, start: Any) -> None:
        what, placement = start
        self._console.print(_heading(what), markup=False)
        self._console.print(str(placement), markup=False)
        self._measuring = time.monotonic()
        self.phase("starting the actors")

    def work(self, share: float) -> None:
        """Show the share of the work that is done."""
        self._bar.update(self._task, completed=share)
        self._text, self._is_preparing = "", False
        if not self._is_live and share > 0 and self._is_due(_PLAIN_SECONDS):
            left = (time.monotonic() - self._measuring) * (1 - share) / share
            # The first per cent is the start of the actors.
            rest = f", about {left:.0f} s left" if share >= 0.01 else ""
            self._console.print(f"{100 * share:.0f} %{rest}")

    def interrupted(self) -> None:
        self._console.print("interrupted; what is measured is kept, the same command goes on")


def _heading(start: "Subject | MeasurementStart") -> str:
    from rayfl.diagnostics.sweeps import MeasurementStart

    if isinstance(start, MeasurementStart):
        return f"flatness of sweep {start.sweep}: {start.trials} trials, {start.missing} of them to measure"
    config = start.config
    rounds = ", ".join(str(saved.round) for saved in start.checkpoints)
    return (
        f"flatness of {config.algorithm_name}, seed {config.seed}, config {config.hash}, "
        f"after round {rounds}"
    )
