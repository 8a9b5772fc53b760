"""Consoles, streams and interrupts of the commands."""

import codecs
import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from rayfl.cli.signals import Interrupts

if TYPE_CHECKING:
    from rayfl.cli.run_display import RunDisplay
    from rayfl.cli.sweep_display import SweepDisplay

_NEVER_CUT = 10_000  # columns: wider than any table, which a terminal may wrap but must not shorten

_ASCII = str.maketrans({"·": ".", "±": "+-", "–": "-", "—": "-", "→": "->", "…": "..."})


def console(stderr: bool = False) -> Console:
    """Return a console that shows text as it is, without colours for numbers or emoji."""
    return Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=True)


def table_console() -> Console:
    """Return a console of stdout that never shortens a table."""
    return Console(highlight=False, emoji=False, width=_NEVER_CUT)


def fail(error: Exception) -> None:
    """Print an error on stderr."""
    console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}")


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


@contextlib.contextmanager
def showing(
    progress: "RunDisplay | SweepDisplay", redirect: bool = True
) -> "Iterator[Callable[[Any], None]]":
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
