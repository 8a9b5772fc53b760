"""Memory of a whole run: peak PSS of all its processes, including Ray's and the object store.

ResNet-18 with 100 clients, 10 a round, as `rayfl run` runs it on two cores. What client memories take is
computed, and taken off: they are state, which the method asks for.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.findings import Finding, median
from benchmarks.processes import Peak
from benchmarks.workloads import Workload
from rayfl.prepare import prepare

RAYFL = Path(sys.executable).parent / "rayfl"
METHODS = ("fedavg", "fedwmsam")
TARGET_GB = 2.0
ROUNDS = 4


def measure(workload: Workload) -> list[Finding]:
    """Measure one run of each method."""
    return [finding for method in METHODS for finding in _run(workload, method)]


def _run(workload: Workload, method: str) -> list[Finding]:
    options = {"cohort": 10, "local_steps": 2, "rounds": ROUNDS, "eval_every": ROUNDS}
    experiment = workload.experiment({"name": method}, **options)
    prepared = prepare(experiment)
    f = prepared.federation
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "footprint.yaml"
        config.write_text(experiment.to_yaml())
        process = subprocess.Popen(
            [str(RAYFL), "run", str(config), "resources.num_actors=2"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with Peak(process.pid).watched() as peak:
            _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    gigabytes = peak.bytes / 1e9
    findings = [
        median("footprint", f"resnet18, {method}: peak PSS of all processes", "GB", [gigabytes])
    ]
    w = prepared.specs()[0].w
    remembered = prepared.config.algorithm.init_client(torch.from_numpy(w))
    each = sum(value.numel() * value.element_size() for value in remembered.values())
    rounds = range(1, ROUNDS + 1)
    seen = {client for round in rounds for client in f.cohort(round)}
    own = gigabytes - each * len(seen) / 1e9
    what = f"resnet18, {method}: without the memories of the {len(seen)} clients seen"
    return [*findings, median("footprint", what, "GB", [own], TARGET_GB)]
