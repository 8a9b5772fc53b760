"""Does anything grow in a long run: a process, its descriptors, the files of Ray and of the run?

    python -m benchmarks.growth quickstart federation.rounds=5000

Looks every `--every` rounds at this process, which is the driver, and at all that it started. Memory is
private pages (USS) of each process; processes of one kind are taken together. The shared pages are those of
Ray's object store. Growth is between the first look after `--warm-up` rounds and the last one. What is left
in the temporary directory when the run is over is listed at the end.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.memory import file_sizes, shared_files
from rayfl import load_config, run
from rayfl.federation.metrics import Metrics, RoundMetrics

DRIVER = "driver"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("config", help="a file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--every", type=int, default=250, help="rounds between two looks")
    parser.add_argument("--warm-up", type=int, default=500, help="rounds before the first look")
    parser.add_argument("--json", type=Path)
    # A short path: Ray's sockets are in it.
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/rayfl-growth"))
    arguments = parser.parse_intermixed_args()
    shutil.rmtree(arguments.scratch, ignore_errors=True)
    temporary, here = arguments.scratch / "tmp", arguments.scratch / "here"
    temporary.mkdir(parents=True)
    here.mkdir()
    os.environ |= {"TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary)}
    tempfile.tempdir = str(temporary)
    config = load_config(arguments.config, arguments.overrides)
    os.chdir(here)
    looks: list[dict[str, float]] = []
    began = time.monotonic()

    def look(metrics: Metrics) -> None:
        if not isinstance(metrics, RoundMetrics) or metrics.round % arguments.every:
            return
        if metrics.round >= arguments.warm_up:
            seconds = time.monotonic() - began
            looks.append({"round": metrics.round, "seconds": seconds} | measure(temporary, here))

    run(config, on_metrics=look)
    show(looks)
    left = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*"))
    print(f"left in the temporary directory: {', '.join(left) or 'nothing'}")
    print(f"processes left: {len(psutil.Process().children(recursive=True))}")
    if arguments.json:
        arguments.json.write_text(json.dumps(looks, indent=2))


def measure(temporary: Path, here: Path) -> dict[str, float]:
    """Return the MB, processes and descriptors of each kind of process, and the files and MB of folders."""
    found: Counter[str] = Counter()
    stores: dict[int, int] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(OSError, psutil.Error):  # it has ended
            kind = _kind(process)
            found[f"{kind}, MB"] += process.memory_full_info().uss
            found[f"{kind}, descriptors"] += process.num_fds()
            found["processes"] += 1
            stores |= dict(shared_files(process.pid))
    found["object store, MB"] = sum(stores.values())
    for name, folder in (("temporary files", temporary), ("files of the run", here)):
        sizes = [*file_sizes(folder)]
        found[name], found[f"{name}, MB"] = len(sizes), sum(sizes)
    return {key: n / 1e6 if key.endswith("MB") else float(n) for key, n in found.items()}


def _kind(process: psutil.Process) -> str:
    if process.pid == os.getpid():
        return DRIVER
    command = " ".join(process.cmdline())
    if actor := re.match(r"ray::([\w]+)", command):
        return actor[1]
    for kind in ("gcs_server", "raylet", "dashboard", "agent", "monitor"):
        if re.search(rf"{kind}\S*( |$)", command.split(" --", maxsplit=1)[0]):
            return kind
    return process.name()


def show(looks: list[dict[str, float]]) -> None:
    """Print a row for each thing measured: at the first look, in the middle, at the last one."""
    chosen = [looks[0], looks[len(looks) // 2], looks[-1]]
    heads = [f"round {look['round']:.0f}" for look in chosen]
    table = Table("", *heads, "growth")
    for key in sorted({key for look in looks for key in look} - {"round"}):
        values = [look.get(key, 0.0) for look in chosen]
        growth = f"{100 * (values[-1] / values[0] - 1):+.1f} %" if values[0] else ""
        digits = 1 if key.endswith("MB") else 0
        table.add_row(key, *(f"{value:.{digits}f}" for value in values), growth)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
