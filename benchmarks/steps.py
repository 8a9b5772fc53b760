"""Cost of a local step of each method relative to FedAvg, in the engine itself: one process, no Ray.

The methods take turns, one work unit of one client each, and what is compared is the processor time of the
two units of one turn: another program that takes the processor for a while changes neither.
"""

import copy
import time
from typing import Any

import torch

from benchmarks.findings import Finding, median
from benchmarks.workloads import Workload
from rayfl.algorithms.base import ServerContext
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.training.engine import Engine
from rayfl.training.process import configure_process
from rayfl.training.units import Arrays, Broadcast, WorkUnit

METHODS: dict[str, dict[str, float | None]] = {
    # The most that a step may cost, over FedAvg's, by workload.
    "fedwmsam": {"lenet5": 1.05, "resnet18": 1.08},
    "fedsam": {"lenet5": 2.02, "resnet18": 2.02},
    "fednsam": {},
    "scaffold": {},
}
STEPS = {"lenet5": 40, "resnet18": 15}


class Side:
    """Method with a client that has had a round before, so that no vector is zero."""

    def __init__(self, prepared: Prepared):
        self.algorithm = algorithm = prepared.config.algorithm
        self.lr = prepared.federation.lrs[0]
        self.engine = Engine(
            copy.deepcopy(prepared.model),
            algorithm,
            prepared.data,
            prepared.partition,
            prepared.settings,
            "cpu",
        )
        server = prepared.specs()[0]
        w, self.buffers = torch.from_numpy(server.w), torch.from_numpy(server.buffers)
        self.memory: Arrays | None = None
        self.broadcast = self._broadcast(w, algorithm.init_server(w))
        result, kept = self._unit(1)
        mean = {name: torch.from_numpy(v) for name, v in result.sums.items() if name != "buffers"}
        self.memory = kept[0] if self.engine.remembers else None
        ctx = ServerContext(lr=self.lr, steps=float(result.steps.sum()), participation=1.0, round=1)
        self.broadcast = self._broadcast(
            *algorithm.server_step(w, algorithm.init_server(w), mean, ctx)
        )
        self.seconds: list[float] = []

    def take_turn(self, round: int) -> None:
        began = time.process_time()
        result, _ = self._unit(round)
        self.seconds.append((time.process_time() - began) / result.steps.sum())

    def _unit(self, round: int) -> Any:
        return self.engine.train(WorkUnit(round, (0,), self.lr), self.broadcast, [self.memory])

    @torch.no_grad()
    def _broadcast(self, w: torch.Tensor, server: dict[str, torch.Tensor]) -> Broadcast:
        start, shared = self.algorithm.broadcast(w, server)
        arrays = {name: value.numpy() for name, value in shared.items()}
        return Broadcast(start.numpy(), arrays, self.buffers.numpy())


def measure(name: str, workload: Workload, repeats: int) -> list[Finding]:
    """Measure every method in turn, `repeats` times."""
    configure_process(threads=1)
    steps = STEPS[name]
    sides: dict[str, Side] = {}
    first: Prepared | None = None
    for method in ("fedavg", *METHODS):
        config = workload.experiment({"name": method}, local_steps=steps, rounds=1)
        prepared = prepare(config, first.data, first.partition) if first else prepare(config)
        first = first or prepared
        sides[method] = Side(prepared)
    for round in range(2, 2 + repeats):
        for side in sides.values():
            side.take_turn(round)
    base = sides.pop("fedavg").seconds
    findings = [median("steps", f"{name}: fedavg, step", "ms", [1e3 * s for s in base])]
    for method, side in sides.items():
        ratios = [own / other for own, other in zip(side.seconds, base, strict=True)]
        target = METHODS[method].get(name)
        findings.append(median("steps", f"{name}: {method} over fedavg, step", "x", ratios, target))
    return findings
