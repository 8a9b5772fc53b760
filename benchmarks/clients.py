"""Seconds per round with a million clients against 100: the same cohort, the same work for each client.

The smallest model shows what grows with the number of clients best: its rounds take milliseconds. Every
round is evaluated, with the accuracy of all clients. The two federations have their servers and client
actors side by side in one run, and take turns of some rounds each. What is done before an actor starts, by
`rayfl.prepare`, is measured in a process of its own.
"""

import contextlib
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.findings import Finding, median
from benchmarks.serving import placed, served
from benchmarks.workloads import random_data
from rayfl.config.schema import load_config
from rayfl.federation.server import Server
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.runtime import cluster

CLIENTS = (100, 1_000_000)
SAMPLES = 4
"""Samples of each client."""
FEATURES = 8
"""Numbers of each sample."""
METHODS = ("fedavg", "scaffold")
"""Methods; only the second has client memories."""
ROUNDS = 20
"""Rounds of a turn."""
TARGET = 1.05


def measure(repeats: int) -> list[Finding]:
    """Measure both methods, `repeats` turns each."""
    findings = _preparation()
    with cluster.connected(None):
        for method in METHODS:
            findings += _compare(method, repeats)
    return findings


def _preparation() -> list[Finding]:
    """Measure the processor time and the memory of a driver until an actor of a million clients may start."""
    _config(METHODS[0], CLIENTS[1], 1)  # makes the data
    code = "from benchmarks import clients; clients.report_preparation()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, gigabytes = json.loads(done.stdout)
    what = f"{CLIENTS[1]} clients, imports and preparation: "
    return [
        median("clients", what + "processor time", "s", [seconds], 15.0),
        median("clients", what + "peak memory", "GB", [gigabytes], 1.5),
    ]


def report_preparation() -> None:
    """Prepare a million clients; print the process's seconds and gigabytes so far."""
    _prepared(METHODS[0], CLIENTS[1], 1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6]))


def _compare(method: str, repeats: int) -> list[Finding]:
    sides = [_prepared(method, clients, (repeats + 1) * ROUNDS) for clients in CLIENTS]
    seconds: list[list[float]] = [[] for _ in sides]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(served(side, placed(1))) for side in sides]
        for turn in range(repeats + 1):
            for server, timings in zip(servers, seconds, strict=True):
                timings.append(_turn(server, (turn + 1) * ROUNDS))
    few, many = (timings[1:] for timings in seconds)  # the first turn warms up
    ratios = [m / f for f, m in zip(few, many, strict=True)]
    part = "clients"
    return [
        median(part, f"{method}, {CLIENTS[0]} clients: round", "ms", [1e3 * s for s in few]),
        median(part, f"{method}, {CLIENTS[1]} clients: round", "ms", [1e3 * s for s in many]),
        median(part, f"{method}: {CLIENTS[1]} over {CLIENTS[0]} clients", "x", ratios, TARGET),
    ]


def _turn(server: Server, until: int) -> float:
    """Return the seconds per round up to round `until`, with the evaluations."""
    began, rounds = time.perf_counter(), until - server.round
    for _ in server.run(until):
        pass
    return (time.perf_counter() - began) / rounds


def _prepared(method: str, clients: int, rounds: int) -> Prepared:
    return prepare(load_config(_config(method, clients, rounds)))


def _config(method: str, clients: int, rounds: int) -> dict[str, Any]:
    return {
        "data": random_data(f"features{FEATURES}", clients * SAMPLES, (FEATURES,), np.float32),
        "partition": {"name": "dirichlet", "alpha": 100.0},
        "model": {"name": "mlp", "hidden": [64]},
        "algorithm": {"name": method},
        "federation": {
            "clients": clients,
            "cohort": 10,
            "local_steps": 5,
            "batch_size": SAMPLES,
            "lr": 0.05,
            "rounds": rounds,
        },
        "tracking": {"enabled": False},
        "checkpoint": {"every": None},
    }
