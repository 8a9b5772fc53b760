"""Resident memory of a whole run (driver, Ray, actors, object store), round by round.

    python benchmarks/memory.py memories    2,000 clients of SCAFFOLD on LeNet-5: 6.4 GB of client memories
    python benchmarks/memory.py memories checkpoint.every=auto      with checkpoints; any key may be given
    python benchmarks/memory.py growth      300 rounds of FedWMSAM on LeNet-5: does anything grow?

Counted are the private and file pages of all processes of the run, shared ones once (PSS), and all pages
of the object store, whether a process maps them just now or not. On disk is what Ray has spilled, and the
files of clients' memories and checkpoints: both over the memories of all clients met so far.
"""

import argparse
import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from rayfl import load_config, run
from rayfl.config.schema import Experiment
from rayfl.federation.metrics import Metrics, RoundMetrics
from rayfl.prepare import prepare
from rayfl.training.flat import Layout

WARM_UP = 30  # rounds


def configs(scratch: Path) -> dict[str, dict[str, Any]]:
    """Measure each workload on random images of CIFAR-10's shape."""
    common = {
        "data": {"name": "npz", "path": str(_images(scratch))},
        "model": {"name": "lenet5"},
        "partition": {"name": "iid"},
        "tracking": {"enabled": False},
        "checkpoint": {"every": None, "dir": str(scratch / "checkpoints")},
        "ray": {"object_store_gb": 2.0},
    }
    once = {"local_steps": 1, "batch_size": 5, "eval_every": 1000, "lr": 0.01}
    return {
        "memories": common
        | {
            "algorithm": {"name": "scaffold"},
            "federation": {"clients": 2000, "cohort": 100, "rounds": 100, **once},
        },
        "growth": common
        | {
            "algorithm": {"name": "fedwmsam"},
            "federation": {"clients": 20, "cohort": 10, "rounds": 300, **once},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("workload", choices=["memories", "growth"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--every", type=int, default=10, help="rounds between two looks")
    parser.add_argument("--rounds", type=int, help="fewer, to try it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/rayfl-benchmarks"))
    arguments = parser.parse_args()
    given = configs(arguments.scratch)[arguments.workload]
    if arguments.rounds:
        given["federation"]["rounds"] = arguments.rounds
    config = load_config(given, arguments.overrides)
    live = _memories_gb(config)
    rows: list[dict[str, float]] = []
    began = time.monotonic()
    # Where the memories of a run without checkpoints are, and all that a run before has left.
    tempfile.tempdir = str(arguments.scratch / "temporary")
    for folder in (Path(tempfile.tempdir), arguments.scratch / "checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def look(metrics: Metrics) -> None:
        if isinstance(metrics, RoundMetrics) and metrics.round % arguments.every == 0:
            found = _resident_gb() | {"files": _files_gb(arguments.scratch)}
            took = time.monotonic() - began
            rows.append(
                {"round": metrics.round, **found, "live": live[metrics.round - 1], "seconds": took}
            )

    run(config, on_metrics=look)
    table = Table(
        "round",
        "processes",
        "object store",
        "both, GB",
        "spilled",
        "files, GB",
        "over memories",
        "s",
        title=arguments.workload,
    )
    for row in rows:
        both = row["processes"] + row["store"]
        over = (row["spilled"] + row["files"]) / row["live"] if row["live"] else 0.0
        cells = (row["processes"], row["store"], both, row["spilled"], row["files"], over)
        table.add_row(f"{row['round']:.0f}", *(f"{c:.2f}" for c in cells), f"{row['seconds']:.0f}")
    Console().print(table)
    totals = [row["processes"] + row["store"] for row in rows]
    print(f"peak {max(totals):.2f} GB; client memories {live[-1]:.2f} GB at the end")
    warm = [total for row, total in zip(rows, totals, strict=True) if row["round"] > WARM_UP]
    if len(warm) >= 6:
        first, last = median(warm[: len(warm) // 3]), median(warm[-(len(warm) // 3) :])
        print(
            f"first and last third after {WARM_UP} rounds: {first:.3f} and {last:.3f} GB (medians), "
            f"{100 * (last / first - 1):+.1f} %"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def _resident_gb() -> dict[str, float]:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    pages, stores, sessions = 0, {}, set()
    for process in processes:
        with contextlib.suppress(OSError, psutil.Error):  # it has ended
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_File:")):
                    pages += int(line.split()[1]) * 1024
            stores |= dict(shared_files(process.pid))
            sessions |= set(re.findall(r"/\S+?/session_\w+(?=/)", " ".join(process.cmdline())))
    spilled = 0
    for session in sessions:
        for path in Path(session).glob("ray_spilled_objects*/*"):
            with contextlib.suppress(OSError):
                spilled += path.stat().st_size
    return {
        "processes": pages / 1e9,
        "store": sum(stores.values()) / 1e9,
        "spilled": spilled / 1e9,
    }


def _files_gb(scratch: Path) -> float:
    """Return the bytes of all files of clients' memories and checkpoints."""
    folders = scratch / "temporary", scratch / "checkpoints"
    return sum(size for folder in folders for size in file_sizes(folder)) / 1e9


def file_sizes(folder: Path) -> Iterator[int]:
    """Yield the bytes of each file below a folder."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it has gone
            if path.is_file():
                yield path.stat().st_size


def shared_files(pid: int) -> Iterator[tuple[int, int]]:
    """Return inode and resident bytes of the in-memory files that a process has open."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()).startswith("/dev/shm/"):
                status = descriptor.stat()
                yield status.st_ino, status.st_blocks * 512


def _memories_gb(config: Experiment) -> list[float]:
    """Return by round the bytes of the memories of all clients that have been in a cohort."""
    prepared = prepare(config)
    first = config.algorithm.init_client(Layout(prepared.model).flatten(prepared.model)[0])
    f, found = prepared.federation, list[float]()
    met: set[int] = set()
    for round in range(1, f.rounds + 1):
        met |= set(f.cohort(round))
        found.append(len(met) * sum(value.nbytes for value in first.values()) / 1e9)
    return found


def _images(scratch: Path) -> Path:
    path = scratch / "memory.npz"
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (10_000, 32, 32, 3), dtype=np.uint8)
        y = rng.permutation(np.arange(10_000) % 10)
        np.savez(path, x_train=x, y_train=y, x_test=x[:1000], y_test=y[:1000])
    return path


if __name__ == "__main__":
    main()
