"""Seconds per round against a bare PyTorch loop that does the same steps, in the same run.

Both sides train the same clients on the same minibatches from the same start, which is checked (after one
round they are at the same parameters, to rounding) before anything is timed. The sides take turns, so that
a machine that slows down slows both.

Beside the ratio: what a round takes beside the training of its busiest actor, and the bytes that go through
the object store.
"""

import statistics
from dataclasses import replace
from typing import Any

import torch

from benchmarks.bare import PROCESSES, Timing, run_bare
from benchmarks.findings import Finding, median
from benchmarks.processes import pss
from benchmarks.serving import placed, served
from benchmarks.workloads import Workload
from rayfl.algorithms.base import Vectors
from rayfl.federation.metrics import RoundMetrics
from rayfl.federation.pool import Future, Pool, RoundTraining
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.runtime import cluster
from rayfl.runtime.actors import server_actor, stored
from rayfl.training.units import (
    Arrays,
    Broadcast,
    ClientProbe,
    Personal,
    Probe,
    Split,
    UnitResult,
    WorkUnit,
)

WARM_UP = 3


class CountingPool:
    """Counter of the bytes of all arrays that are put into the object store."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self.bytes = 0
        self.lost_units = 0

    def put(self, broadcast: Broadcast) -> Any:
        self.bytes += broadcast.start.nbytes + broadcast.buffers.nbytes + _size(broadcast.shared)
        return self._pool.put(broadcast)

    def wait(self, future: Future) -> Any:
        result = self._pool.wait(future)
        if isinstance(result, UnitResult):
            self.bytes += sum(_size(self._pool.fetch(handle)) for handle in future.memories)
        return result

    def describe(self) -> list[dict[str, Any]]:
        return self._pool.describe()

    def store(self, memory: Arrays) -> Any:
        return self._pool.store(memory)

    def fetch(self, handle: Any) -> Arrays:
        return self._pool.fetch(handle)

    def train(
        self,
        units: list[WorkUnit],
        samples: list[int],
        broadcast: Any,
        memories: list[list[Any]] | None,
    ) -> RoundTraining:
        return self._pool.train(units, samples, broadcast, memories)

    def total(self, training: RoundTraining) -> Vectors:
        sums = self._pool.total(training)
        self.bytes += len(training.futures) * sum(value.nbytes for value in sums.values())
        return sums

    def evaluate(self, round: int, broadcast: Any, split: Split, first: int, last: int) -> Future:
        return self._pool.evaluate(round, broadcast, split, first, last)

    def personal(self, asked: Personal, point: Any, memory: Any) -> Future:
        return self._pool.personal(asked, point, memory)

    def probe(self, round: int, probe: Probe, point: Any, vectors: Any) -> Future:
        return self._pool.probe(round, probe, point, vectors)

    def probe_client(
        self, probe: ClientProbe, point: Any, broadcast: Any, memory: Any, vectors: Any
    ) -> Future:
        return self._pool.probe_client(probe, point, broadcast, memory, vectors)

    def poll(self) -> None:
        self._pool.poll()


def measure(name: str, workload: Workload, repeats: int) -> list[Finding]:
    """Measure the workload on both sides in turn, `repeats` times, without evaluation."""
    rounds = workload.rounds + WARM_UP
    config = workload.experiment({"name": "fedavg"}, rounds=rounds, eval_every=rounds)
    prepared = prepare(config)
    with cluster.connected(None):
        apart = _apart(prepared, workload.compared_steps)
        assert apart < workload.rounding, (
            f"the two sides compute different things: {apart:.1%} apart"
        )
        bare: list[Timing] = []
        ours: list[Timing] = []
        overheads: list[float] = []
        for _ in range(repeats):
            bare.append(run_bare(prepared))
            ours.append(run_rayfl(prepared, overheads))
        stored = _stored_bytes(prepared)
    ratios = [
        statistics.median(o.seconds[WARM_UP:]) / statistics.median(b.seconds[WARM_UP:])
        for b, o in zip(bare, ours, strict=True)
    ]
    bare_s, ours_s = ([s for t in side for s in t.seconds[WARM_UP:]] for side in (bare, ours))
    return [
        median(name, f"{name}: bare loop, round", "s", bare_s),
        median(name, f"{name}: rayfl, round", "s", ours_s),
        median(name, f"{name}: rayfl over bare loop", "x", ratios, workload.target),
        median(
            name,
            f"{name}: round beside training",
            "ms",
            [1e3 * s for s in overheads],
            workload.overhead_target_ms,
        ),
        median(name, f"{name}: bytes through the object store, round", "MB", [stored / 1e6]),
        median(name, f"{name}: PSS of what trains, bare loop", "MB", [t.pss / 1e6 for t in bare]),
        median(name, f"{name}: PSS of what trains, rayfl", "MB", [t.pss / 1e6 for t in ours]),
    ]


def run_rayfl(prepared: Prepared, overheads: list[float] | None = None) -> Timing:
    """Run all rounds on Ray actors, placed as by `rayfl run`."""
    seconds, most = [], 0.0
    server_spec, client_spec = prepared.specs()
    with server_actor(server_spec, stored(client_spec), placed(PROCESSES)) as server:
        pids = [actor["pid"] for actor in server.describe()]
        for metrics in server.run():
            if isinstance(metrics, RoundMetrics):
                seconds.append(metrics.values["time/round_s"])
                if overheads is not None and len(seconds) > WARM_UP:
                    overheads.append(metrics.values["time/overhead_s"])
                if len(seconds) == prepared.federation.rounds // 2:
                    most = pss(pids)  # once: looking stops the processes
        w = torch.tensor(server.final()[0])
    return Timing(seconds, most, w)


def _stored_bytes(prepared: Prepared) -> float:
    """Return the bytes per round that are put into the object store."""
    rounds = 2
    with served(prepared, placed(PROCESSES)) as server:
        counting = server.pool = CountingPool(server.pool)
        for _ in server.run(until=rounds):
            pass
    return counting.bytes / rounds


def _apart(prepared: Prepared, steps: int | None) -> float:
    """Return the distance between the two sides after one round, relative to the distance from the start."""
    settings = prepared.settings
    once = replace(
        prepared,
        federation=replace(prepared.federation, rounds=1),
        settings=replace(settings, local_steps=steps or settings.local_steps),
    )
    w = once.specs()[0].w
    start = torch.from_numpy(w)
    bare, ours = run_bare(once).w, run_rayfl(once).w
    return float(torch.linalg.vector_norm(bare - ours) / torch.linalg.vector_norm(bare - start))


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
