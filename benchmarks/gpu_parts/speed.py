"""Milliseconds of a client's step on the engine itself, by lanes; and over the bare captured loop."""

import gc
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_parts.bare import BareClient, seconds_per_step
from benchmarks.gpu_parts.engines import broadcast, engine, held_mb, synchronize
from benchmarks.gpu_parts.log import Log
from benchmarks.gpu_parts.setup import Setup
from rayfl.algorithms import ALGORITHMS
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.training.local import SGD
from rayfl.training.precision import Precision, local_arithmetic
from rayfl.training.process import configure_process
from rayfl.training.units import WorkUnit

LANES = (10, 1, 4, 2, 8)  # in the order of their worth
LR, CLIENTS = 0.05, 10
SAME = 2e-2  # of the movement of w: a ReLU's sign that rounding turns moves it by up to 4e-3
OVER_BARE, OVER_FEDAVG, MB_PER_LANE = 1.10, 1.10, 600


class Case(NamedTuple):
    """One side of the comparison."""

    method: str
    precision: Precision
    lanes: int

    def __str__(self) -> str:
        return (
            f"{self.method} {self.precision} {self.lanes} {'lane' if self.lanes == 1 else 'lanes'}"
        )


class Measured(NamedTuple):
    ms: float  # of a client's step
    held_mb: float  # of the GPU, with everything that the engine keeps
    refused: str | None  # why its steps were not recorded


def cases() -> list[Case]:
    """All sides, in the order of their worth."""
    first = [Case(method, "tf32", 10) for method in ("fedwmsam", "fedavg", "fednsam")]
    lanes = [Case("fedwmsam", "tf32", lanes) for lanes in LANES[1:]]
    exact = [Case("fedwmsam", "float32", lanes) for lanes in (10, 1)]
    others = [Case(method, "tf32", 1) for method in ("fedavg", "fednsam")]
    rest = [Case(method, "float32", 10) for method in ("fedavg", "fednsam")]
    return [*first, *lanes, *exact, *others, *rest]


def run(setup: Setup, log: Log) -> None:
    configure_process(threads=1)
    prepared = prepare(setup.experiment())
    unaugmented = replace(prepared, settings=replace(prepared.settings, augment="none"))
    measured: dict[Case, Measured] = {}
    everything = cases()[:3] if setup.small else cases()
    for i, case in enumerate(everything):
        if setup.left < 5:
            log.note("left out, no time", ", ".join(map(str, everything[i:])))
            break
        measured[case] = _unit(setup, log, prepared, case)
        if i == 1:  # both sides of the ratio that counts most have been measured
            _ratio(log, "fedwmsam over fedavg", measured, everything[:2], OVER_FEDAVG)
            for method in ("fedwmsam", "fedavg"):
                _over_bare(setup, log, unaugmented, Case(method, "tf32", 10), measured)
    if setup.device == "cuda":
        not_recorded = [f"{case}: {m.refused}" for case, m in measured.items() if m.refused]
        log.check("all steps are recorded", not not_recorded, "; ".join(not_recorded))
    ten, one = (measured.get(Case("fedwmsam", "tf32", lanes)) for lanes in (10, 1))
    if ten and one and setup.device == "cuda":
        log.value("GPU memory of a lane", (ten.held_mb - one.held_mb) / 9, "MB", limit=MB_PER_LANE)
    elif setup.small:
        log.note("GPU memory of a lane", "left out: there is no GPU")


def _unit(setup: Setup, log: Log, prepared: Prepared, case: Case) -> Measured:
    """Train one unit of ten clients three times."""
    algorithm = ALGORITHMS[case.method]()
    began = time.perf_counter()
    trainer = engine(prepared, setup.device, algorithm, precision=case.precision, lanes=case.lanes)
    sent = broadcast(prepared, algorithm)
    synchronize(setup.device)
    started = time.perf_counter() - began
    clients = tuple(range(2 if setup.small else CLIENTS))
    memories: list[Any] = [None] * len(clients)
    seconds, steps = [], 1
    for round in (1, 2, 3):
        began = time.perf_counter()
        result, kept = trainer.train(unit(round, clients), sent, memories)
        synchronize(setup.device)
        seconds.append(time.perf_counter() - began)
        steps, memories = int(result.steps.sum()), [*kept] if trainer.remembers else memories
    ms = 1e3 * statistics.mean(seconds[1:]) / steps
    held = held_mb(setup.device)
    first = f"start {started:.2f} s, first unit {seconds[0]:.2f} s, {held:.0f} MB in use"
    log.value(f"step, {case}", ms, "ms", note=first)
    if case.lanes in (1, 10) and case.precision == "tf32":
        log.note(f"engine, {case}", trainer)
    why = trainer.refused if setup.device == "cuda" else None
    del trainer, result, kept, memories
    gc.collect()
    held_mb(setup.device)  # gives back what the next case would count as its own
    return Measured(ms, held, why)


def unit(round: int, clients: tuple[int, ...]) -> WorkUnit:
    """The work unit of the clients' n-th round, named as by a server: the device has their memories."""
    names = (f"{round - 1}".encode() if round > 1 else None,) * len(clients)
    return WorkUnit(round, clients, LR, names, f"{round}".encode())


def _over_bare(
    setup: Setup, log: Log, prepared: Prepared, case: Case, measured: dict[Case, Measured]
) -> None:
    """The same steps by a bare loop, one and ten at once; and whether they are the same."""
    algorithm = ALGORITHMS[case.method]()
    trainer, sent = (
        engine(prepared, setup.device, algorithm, lanes=1),
        broadcast(prepared, algorithm),
    )
    s = prepared.settings
    sgd = SGD(lr=LR, weight_decay=s.weight_decay, clip_norm=s.clip_norm)
    make = partial(BareClient, prepared.model, trainer, sent, sgd)
    _same_steps(log, case.method, make(0), prepared, setup, algorithm)
    wait = partial(synchronize, setup.device)
    with local_arithmetic(case.precision):
        clients = [make(i) for i in range(2 if setup.small else CLIENTS)]
        for client in clients:
            client.capture()
        alone = statistics.median(seconds_per_step(clients[:1], wait) for _ in range(3))
        together = statistics.median(seconds_per_step(clients, wait) for _ in range(3))
    log.value(f"bare loop, {case.method}, 1 stream", 1e3 * alone, "ms")
    log.value(f"bare loop, {case.method}, {len(clients)} streams", 1e3 * together, "ms")
    ratio = measured[case].ms / (1e3 * together)
    log.value(f"{case.method} over the bare loop", ratio, "x", limit=OVER_BARE)
    del clients
    gc.collect()


def _same_steps(
    log: Log, method: str, bare: BareClient, prepared: Prepared, setup: Setup, algorithm: Any
) -> None:
    """Whether two steps of both sides in float32 end at the same place.

    Later ones need not: rounding may turn the sign in front of a ReLU, and each step multiplies that.
    """
    two = replace(prepared, settings=replace(prepared.settings, local_epochs=None, local_steps=2))
    trainer, sent = engine(two, setup.device, algorithm, lanes=1), broadcast(two, algorithm)
    with torch.no_grad():
        for _ in range(2):
            bare.step()
    delta = bare.x - bare.start
    result, _ = trainer.train(WorkUnit(1, (0,), LR), sent, [None])
    expected = torch.tensor(result.sums["delta"], device=delta.device)
    apart = float((delta - expected).norm() / expected.norm())
    log.check(f"{method}: two steps of both sides are the same", apart < SAME, f"{apart:.1e} apart")


def _ratio(
    log: Log, what: str, measured: dict[Case, Measured], sides: list[Case], limit: float
) -> None:
    above, below = (measured[case].ms for case in sides)
    log.value(f"{what}, a step", above / below, "x", limit=limit)
