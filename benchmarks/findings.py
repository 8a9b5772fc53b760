"""Results of a benchmark: numbers beside their targets, as a table and as JSON."""

import datetime
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Median, smallest and largest value of several measurements."""

    part: str
    """Name of the benchmark."""
    what: str
    unit: str
    """Unit: `s`, `ms`, `MB`, `GB`, `%`, or `x` for a ratio."""
    value: float
    low: float
    high: float
    samples: int
    target: float | None = None
    """Upper limit of the value."""

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.value <= self.target


def median(
    part: str, what: str, unit: str, values: Sequence[float], target: float | None = None
) -> Finding:
    """Return the finding of several measurements of the same quantity."""
    return Finding(
        part=part,
        what=what,
        unit=unit,
        value=statistics.median(values),
        low=min(values),
        high=max(values),
        samples=len(values),
        target=target,
    )


def machine() -> dict[str, Any]:
    """Describe the machine and its load."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def show(findings: Sequence[Finding]) -> None:
    """Print a table."""
    table = Table("what", "median", "min to max", "target", "")
    for f in findings:
        target = f"<= {_shown(f.target)} {f.unit}" if f.target is not None else ""
        verdict = {True: "met", False: "MISSED", None: ""}[f.met]
        spread = f"{_shown(f.low)} to {_shown(f.high)}" if f.samples > 1 else ""
        table.add_row(f.what, f"{_shown(f.value)} {f.unit}", spread, target, verdict)
    Console(width=130, highlight=False).print(table)


def write(path: Path, findings: Sequence[Finding], machine: dict[str, Any]) -> None:
    """Write findings and machine as JSON."""
    content = {"machine": machine, "findings": [asdict(f) | {"met": f.met} for f in findings]}
    path.write_text(json.dumps(content, indent=2))


def _shown(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
