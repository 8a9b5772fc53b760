"""Results of the GPU benchmark: one JSON line each, on disk before the next is measured; and their table."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Kind = Literal["value", "check", "note", "status"]
RESULTS = "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One result."""

    time: float  # seconds since the epoch
    part: str
    kind: Kind
    what: str
    value: Any = None
    unit: str = ""
    limit: float | None = None  # the most that a value should be
    ok: bool | None = (
        None  # whether a check held, a value met its limit, or a part ended; None: no limit
    )
    note: str = ""

    @property
    def failed(self) -> bool:
        """True for what makes the whole benchmark fail: checks, and parts that did not end."""
        return self.ok is False and self.kind in ("check", "status")


class Log:
    """Appends lines of one part to the results of a folder."""

    def __init__(self, out: Path, part: str, targets: bool = True):
        """`targets`: values have limits; not in a rehearsal."""
        self.path, self.part, self._targets = out / RESULTS, part, targets

    def value(
        self, what: str, value: float, unit: str = "", limit: float | None = None, note: str = ""
    ) -> None:
        """A measurement, and the most that it should be."""
        limit = limit if self._targets else None
        ok = None if limit is None else value <= limit
        self._write("value", what, value=value, unit=unit, limit=limit, ok=ok, note=note)

    def check(self, what: str, ok: bool, note: str = "") -> None:
        """Something that must hold."""
        self._write("check", what, ok=bool(ok), note=note)

    def note(self, what: str, note: object) -> None:
        """Something to know: versions, what was left out and why."""
        self._write("note", what, note=str(note))

    def status(self, ended: str, seconds: float, ok: bool | None, note: str = "") -> None:
        """How the part ended."""
        self._write("status", ended, value=seconds, unit="s", ok=ok, note=note)

    def _write(self, kind: Kind, what: str, **given: Any) -> None:
        line = Line(time=time.time(), part=self.part, kind=kind, what=what, **given)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(out: Path) -> list[Line]:
    """The results of a folder; a last line that was cut off is left out."""
    lines: list[Line] = []
    path = out / RESULTS
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(Line(**json.loads(text)))
        except (ValueError, TypeError):
            continue
    return lines


def show(lines: Iterable[Line]) -> None:
    """Print the table."""
    table = Table("part", "what", "value", "limit", "", "note", box=SIMPLE_HEAD, pad_edge=False)
    before = None
    for line in lines:
        part, before = line.part if line.part != before else "", line.part
        style = "red" if line.failed else "dim" if line.kind == "status" else None
        value = "" if line.value is None else f"{_number(line.value)} {line.unit}".rstrip()
        limit = "" if line.limit is None else f"<= {_number(line.limit)}"
        table.add_row(part, line.what, value, limit, _verdict(line), line.note, style=style)
    with (console := Console(width=150, highlight=False)).capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)


def _verdict(line: Line) -> str:
    good, bad = {"value": ("met", "missed"), "check": ("holds", "FAILED")}.get(
        line.kind, ("", "FAILED")
    )
    return "" if line.ok is None else good if line.ok else bad


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
