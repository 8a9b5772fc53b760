"""Consoles, streams and interrupts of the commands."""

import codecs
import contextlib
import io
import os
import shlex
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rayfl.cli.signals import Interrupts
from rayfl.errors import ConfigError

_NEVER_CUT = 10_000  # columns: wider than any table, which a terminal may wrap but must not shorten

_ASCII = str.maketrans({"·": ".", "±": "+-", "–": "-", "—": "-", "→": "->", "…": "..."})


def console(stderr: bool = False) -> Console:
    """Return a console that shows text as it is, without colours for numbers or emoji."""
    return Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=True)


def table_console(width: int | None = None) -> Console:
    """Return a console of stdout that folds the texts of a table at a width; None: that shortens nothing."""
    return Console(highlight=False, emoji=False, width=width or _NEVER_CUT)


def terminal_width() -> int | None:
    """Return the width of the terminal, or $COLUMNS; None where stdout is for programs."""
    out = console()
    return out.width if out.is_terminal or "COLUMNS" in os.environ else None


def measured(table: Table) -> int:
    """Return the width of a table that nothing shortens."""
    return table_console().measure(table).maximum


def say(*lines: str, stderr: bool = False) -> None:
    """Print lines as they are, without rich's markup."""
    for line in lines:
        console(stderr=stderr).print(line, markup=False)


def table(*columns: str) -> Table:
    """Return an empty table in the style of all commands."""
    return Table(*columns, header_style="bold", box=box.SIMPLE_HEAD)


@contextlib.contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Raise ConfigError about the option if the file at `path` cannot be written in this context."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"{option} = '{path}': cannot be written ({why})") from error


def fail(error: Exception) -> None:
    """Print an error on stderr, and its notes."""
    words = "\n".join([str(error), *getattr(error, "__notes__", ())])
    console(stderr=True).print(f"[bold red]error:[/] {escape(words)}")


def write_any_character() -> None:
    """Replace characters that stdout or stderr cannot encode, instead of raising UnicodeEncodeError."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def write_utf8() -> None:
    """Make stdout UTF-8, as config files are read."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return ASCII for characters of a path or a table, as a codec's error handler does."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode(), error.end


class Display(ABC):
    """Live display on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console, live: bool = True):
        """`live`: redraw on a terminal, which would get into a debugger's way."""
        self._console, self._is_live = console, live and console.is_terminal
        self._text, self._is_preparing = "preparing", True
        self._began = self._printed = time.monotonic()
        self._live = Live(console=console, get_renderable=self.__rich__)  # it draws at once

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @abstractmethod
    def __rich__(self) -> RenderableType:
        """Draw the present state."""

    @abstractmethod
    def start(self, start: Any) -> None:
        """Show what is going to run, once Ray has started."""

    @abstractmethod
    def interrupted(self) -> None:
        """Show the state of what the user stopped."""

    def phase(self, text: str) -> None:
        """Show what is done before the first result, with the time since the command's start."""
        self._text, self._is_preparing = text, True
        if not self._is_live:
            self._console.print(self._line(), markup=False)

    def _line(self) -> str:
        """Return the text; with the time since the start while nothing else tells that time passes."""
        elapsed = duration(time.monotonic() - self._began)
        return f"{self._text} ({elapsed})" if self._is_preparing else self._text

    def say(self, text: str) -> None:
        """Show a message. Safe in a signal handler."""
        self._text, self._is_preparing = text, False
        if not self._is_live:
            os.write(2, f"{text}\n".encode())

    def _is_due(self, seconds: float) -> bool:
        """Return True if no plain line was printed for so long; then one is going to be."""
        now = time.monotonic()
        if is_due := now - self._printed >= seconds:
            self._printed = now
        return is_due


def duration(seconds: float) -> str:
    """Return a duration as text, such as `1 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def this_command(resume: str | None = None) -> str:
    """Return the command of this process for a shell, with another `--resume` if given."""
    words = ["rayfl", *sys.argv[1:]]
    if resume is not None:
        if "--resume" in words:
            at = words.index("--resume")
            del words[at : at + 2]
        words = [word for word in words if not word.startswith("--resume=")]
        words += ["--resume", resume]
    return shlex.join(words)


@contextlib.contextmanager
def showing(progress: Display, redirect: bool = True) -> Iterator[Callable[[Any], None]]:
    """Show progress while the context is entered; Ctrl-C ends the command with exit code 130.

    Yields the callback for the moment when Ray has started. `redirect`: keep what libraries print off
    stdout; a debugger needs it as it is.
    """
    interrupts = Interrupts(progress.say)

    def on_start(start: Any) -> None:
        interrupts.take()
        progress.start(start)

    results = _stdout_for_results() if redirect else contextlib.nullcontext()
    try:
        with interrupts, progress, results:
            yield on_start
    except (KeyboardInterrupt, SystemExit):  # while it starts, Ray exits at SIGTERM
        progress.interrupted()
        raise typer.Exit(130) from None


def _stdout_for_results() -> contextlib.AbstractContextManager[object]:
    """Redirect to stderr what libraries print; Ray reports lost nodes on stdout, for instance."""
    return contextlib.redirect_stdout(_OneRowPerLine() if sys.stderr.isatty() else sys.stderr)


class _OneRowPerLine(io.TextIOBase):
    """Stderr of a terminal with long lines cut; Ray's report of a dead process fills ten rows."""

    def write(self, text: str) -> int:
        most = shutil.get_terminal_size().columns - len("...")
        for line in text.splitlines(keepends=True):
            end = "\n" if line.endswith("\n") else ""
            sys.stderr.write(line if len(line) <= most else f"{line[:most]}...{end}")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
