"""Seconds per round of other installed frameworks and of rayfl, in turn.

    pip install flwr             # Flower, its simulation on Ray; alone: pip install "flwr[simulation]"
    pip install "pfl[pytorch]"   # pfl-research

Flower's extra `simulation` wants one version of Ray, older than what rayfl needs: beside rayfl Flower runs
on rayfl's Ray. Both change versions of other packages: take a virtual environment of its own.

All sides have two processes of one thread, which keep data and model, and do not evaluate. They train the
same clients on the same minibatches from the same start: each turn is checked to be at rayfl's parameters
after its first round, to rounding. What differs: Flower's and pfl's clients train one after the other with
`torch.optim.SGD`, as in the bare loop; a turn of theirs has fewer rounds; the processes of each side end
with its turn. Start-up is not counted, the first three rounds warm up. A framework that fails is left out
of that workload's findings, and one line says why.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.bare import PROCESSES
from benchmarks.findings import Finding, median
from benchmarks.peers.turn import FAILED, Turn
from benchmarks.rounds import WARM_UP, run_rayfl
from benchmarks.workloads import SCRATCH, Workload, workloads
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.runtime import cluster

ROOT = Path(__file__).parents[2]
PACKAGES = {"flower": "flwr", "pfl_research": "pfl"}
LAUNCHERS = {
    "flower": [],
    "pfl_research": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", PROCESSES],
}
ROUNDS = {"lenet5": 4, "mlp": 10, "mlp_small": 10}
"""Rounds of the other frameworks' turns; rayfl's turns have those of the workload."""
TARGETS = {("mlp", "flower"): 1 / 25, ("mlp_small", "flower"): 1 / 100}
"""Limit of rayfl's time relative to the other framework."""


class PeerError(Exception):
    """Another framework failed."""


def measure(cifar10: Path | None, repeats: int) -> list[Finding]:
    """Measure the installed frameworks on all workloads, `repeats` times each."""
    installed = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
    if not installed:
        print('peers: nothing to compare with; pip install flwr "pfl[pytorch]" (either will do)')
        return []
    known = workloads(cifar10)
    return [
        finding
        for name in ROUNDS
        for finding in _compare(name, known[name], installed, cifar10, repeats)
    ]


def _compare(
    name: str, workload: Workload, peers: list[str], cifar10: Path | None, repeats: int
) -> list[Finding]:
    rounds = workload.rounds + WARM_UP
    config = workload.experiment({"name": "fedavg"}, rounds=rounds, eval_every=rounds)
    prepared = prepare(config)
    once = replace(prepared, federation=replace(prepared.federation, rounds=1))
    start, first = prepared.specs()[0].w, _rayfl(once)[1]
    ours: list[float] = []
    theirs: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(repeats):
        ours.append(statistics.median(_rayfl(prepared)[0][WARM_UP:]))
        for peer in list(theirs):
            try:
                turn = _turn(peer, name, WARM_UP + ROUNDS[name], cifar10)
                _check(turn, start, first, workload.rounding)
            except PeerError as error:
                print(f"peers: {peer} failed on {name}: {error}")
                del theirs[peer]
                continue
            theirs[peer].append(float(np.median(np.diff(turn.ends)[WARM_UP - 1 :])))
    findings = [median("peers", f"{name}: rayfl, round", "s", ours)]
    for peer, seconds in theirs.items():
        ratios = [o / t for o, t in zip(ours, seconds, strict=True)]
        target = TARGETS.get((name, peer))
        findings.append(median("peers", f"{name}: {peer}, round", "s", seconds))
        findings.append(median("peers", f"{name}: rayfl over {peer}", "x", ratios, target))
    return findings


def _rayfl(prepared: Prepared) -> tuple[list[float], np.ndarray]:
    """Return the seconds of each round, and the final w."""
    with cluster.connected(None):
        timing = run_rayfl(prepared)
    return timing.seconds, timing.w.numpy()


def _turn(peer: str, workload: str, rounds: int, cifar10: Path | None) -> Turn:
    """Run all rounds in fresh processes."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    out, log = SCRATCH / f"{peer}.npz", SCRATCH / f"{peer}.log"
    out.unlink(missing_ok=True)
    task = ["-m", "benchmarks.peers.turn", peer, workload, rounds, out, cifar10 or ""]
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, *map(str, LAUNCHERS[peer] + task)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if done.returncode or not out.exists():
        raise PeerError(f"{_reason(log.read_text())} (all of its output: {log})")
    with np.load(out) as saved:
        return Turn(**saved)


def _check(turn: Turn, start: np.ndarray, first: np.ndarray, rounding: float) -> None:
    """Check that the framework computed the same as rayfl."""
    apart = np.linalg.norm(turn.first - first) / np.linalg.norm(first - start)
    if not apart < rounding:
        raise PeerError(f"it computes something else: {apart:.1%} apart after one round")
    if not np.isfinite(turn.last).all() or np.array_equal(turn.last, turn.first):
        raise PeerError("it stopped to train after one round")


def _reason(output: str) -> str:
    """Return the line of the output that states the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    told = [line.partition(FAILED)[2] for line in lines if FAILED in line]
    return (told or lines[-1:])[0]
