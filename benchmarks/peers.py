"""Seconds per round of other frameworks, where they are installed, and of rayfl in turn with them.

Flower (`pip install flwr`, simulation on Ray) and pfl-research (`pip install pfl[pytorch]`), each with two
processes of one thread and in processes of its own.
"""

import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.bare import PROCESSES
from benchmarks.findings import Finding, median
from benchmarks.rounds import WARM_UP, run_rayfl
from benchmarks.workloads import workloads
from rayfl.experiment import prepare
from rayfl.runtime import cluster

ROOT = Path(__file__).parent.parent
# The most that rayfl may take, over Flower.
TARGETS = {"mlp": 1 / 25, "mlp_small": 1 / 100}
WORKLOADS = {"lenet5": 4, "mlp": 10, "mlp_small": 10}
"""Rounds of a turn."""


def measure(cifar10: Path | None, repeats: int) -> list[Finding]:
    """All peers that are installed, on all workloads."""
    sides: dict[str, Callable[[str, str, int], list[float]]] = {}
    if importlib.util.find_spec("flwr"):
        sides["flower"] = _flower
    if importlib.util.find_spec("pfl"):
        sides["pfl"] = _pfl
    findings: list[Finding] = []
    for name, rounds in WORKLOADS.items() if sides else ():
        ours: list[float] = []
        theirs: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(repeats):
            ours.append(_rayfl(name, cifar10, rounds))
            for side, seconds in sides.items():
                per_round = seconds(name, str(cifar10 or ""), WARM_UP + rounds)
                theirs[side].append(statistics.median(per_round[WARM_UP - 1 :]))
        findings.append(median("peers", f"{name}: rayfl, round", "s", ours))
        for side, seconds in theirs.items():
            ratios = [o / t for o, t in zip(ours, seconds, strict=True)]
            target = TARGETS.get(name) if side == "flower" else None
            findings.append(median("peers", f"{name}: {side}, round", "s", seconds))
            findings.append(median("peers", f"{name}: rayfl over {side}", "x", ratios, target))
    return findings


def _rayfl(name: str, cifar10: Path | None, rounds: int) -> float:
    rounds += WARM_UP
    config = workloads(cifar10)[name].experiment(
        {"name": "fedavg"}, rounds=rounds, eval_every=rounds
    )
    with cluster.connected(None):
        return statistics.median(run_rayfl(prepare(config)).seconds[WARM_UP:])


def _flower(name: str, cifar10: str, rounds: int) -> list[float]:
    return _seconds([_started("flower", name, cifar10, rounds)])


def _pfl(name: str, cifar10: str, rounds: int) -> list[float]:
    addresses = ",".join(f"127.0.0.1:{_free_port()}" for _ in range(PROCESSES))
    workers = [
        _started(
            "pfl_research",
            name,
            cifar10,
            rounds,
            PFL_WORKER_ADDRESSES=addresses,
            PFL_WORKER_RANK=str(rank),
        )
        for rank in range(PROCESSES)
    ]
    return _seconds(workers)


def _started(
    module: str, name: str, cifar10: str, rounds: int, **environment: str
) -> subprocess.Popen[str]:
    code = (
        f"import json; from benchmarks.{module} import main; "
        f"print(json.dumps(main({name!r}, {cifar10!r}, {rounds})))"
    )
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
    )


def _seconds(workers: list[subprocess.Popen[str]]) -> list[float]:
    """What the first of them printed last."""
    outputs = [worker.communicate()[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "a peer failed; see above"
    return json.loads(outputs[0].strip().splitlines()[-1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
