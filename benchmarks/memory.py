"""Resident memory of a whole run (driver, Ray, actors, object store), round by round.

    python benchmarks/memory.py memories    2,000 clients of SCAFFOLD on LeNet-5: 6.4 GB of client memories
    python benchmarks/memory.py growth      300 rounds of FedWMSAM on LeNet-5: does anything grow?

Memory is the PSS of all processes of the run: pages that several of them map, such as those of the object
store, count once.
"""

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from rayfl import load_config, run
from rayfl.runtime.server import Record


def configs(scratch: Path) -> dict[str, dict[str, Any]]:
    """Each workload, on random images of CIFAR-10's shape: what is learned does not matter here."""
    common = {
        "data": {"name": "npz", "path": str(_images(scratch))},
        "model": {"name": "lenet5"},
        "partition": {"name": "iid"},
        "tracking": {"enabled": False},
        "checkpoint": {"every": None},
        "ray": {"object_store_gb": 2.0},
    }
    once = {"local_steps": 1, "batch_size": 5, "eval_every": 1000, "lr": 0.01}
    return {
        "memories": common
        | {
            "algorithm": {"name": "scaffold"},
            # Ascending rounds meet every client sooner or later: 100 of 2,000 a round, 100 rounds.
            "federation": {"clients": 2000, "cohort_size": 100, "rounds": 100, **once},
        },
        "growth": common
        | {
            "algorithm": {"name": "fedwmsam"},
            "federation": {"clients": 20, "cohort_size": 10, "rounds": 300, **once},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("workload", choices=["memories", "growth"])
    parser.add_argument("--every", type=int, default=10, help="rounds between two looks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/rayfl-benchmarks"))
    arguments = parser.parse_args()
    config = load_config(configs(arguments.scratch)[arguments.workload])
    rows: list[dict[str, float]] = []

    def look(record: Record) -> None:
        if "train/loss" in record.metrics and record.round % arguments.every == 0:
            rows.append({"round": record.round, "pss_gb": _pss_of_all() / 1e9})

    result = run(config, on_record=look)
    table = Table("round", "PSS of all processes, GB", title=arguments.workload)
    for row in rows:
        table.add_row(f"{row['round']:.0f}", f"{row['pss_gb']:.2f}")
    Console().print(table)
    print(
        f"peak {max(row['pss_gb'] for row in rows):.2f} GB; {result.summary['rounds']:.0f} rounds"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def _pss_of_all() -> float:
    processes = [psutil.Process(os.getpid())]
    processes += processes[0].children(recursive=True)
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_full_info().pss
    return total


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
