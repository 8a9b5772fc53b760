"""The pool of client actors, which execute the work units.

A pool gives a future for each work unit. The server waits for the future that it needs next; meanwhile
every idle actor takes the next unit, of its own node's share first, so that neighbours' sums are made on
one node. A unit whose actor dies runs again elsewhere: it is a pure function, so nothing a result depends on
is decided here.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from rayfl.algorithms.base import Vectors
from rayfl.errors import ClientError, RunError, StateLostError, first_line
from rayfl.federation.pool import Future, Training, without_sums
from rayfl.federation.sums import Span, Sum
from rayfl.runtime.queue import ActorFuture, UnitQueue
from rayfl.runtime.sums import Apart, SpreadSums
from rayfl.training.units import Arrays, Broadcast, ClientProbe, Personal, Probe, Split, WorkUnit

# An actor whose units take less than this gets its next one before it has finished the last, so that it
# never waits for a message; longer units are worth giving to whoever is idle first.
SHORT_UNIT_SECONDS = 0.1
# A broadcast of no more bytes than this travels in the calls themselves, as Ray sends small arguments anyway:
# to take it from the object store costs an actor more.
SMALL_BYTES = 64 * 1024
# Of a link between nodes, about. An idle actor takes a unit that is meant for another node only if that takes
# longer than its sum's way there.
LINK_BYTES_PER_S = 125e6
# How often the pool looks for room and for units that take too long.
LOOK_SECONDS = 1.0
# Without a single ready actor for so long, a run ends: new machines take minutes, not more.
START_SECONDS = 900.0
# A unit that has outlived this many of its actors probably killed them (out of memory, say).
RETRIES = 3
# An actor that dies while it starts costs nothing but the start.
START_RETRIES = 10
# What Ray raises for the calls of an actor that died; of its own accord it ends one to free memory.
DEATHS = (RayActorError, OutOfMemoryError)


@dataclass(eq=False, kw_only=True)
class ActorTraining(Training):
    """The work units of a round on client actors."""

    spread: SpreadSums


class ResultLost(Exception):
    """A unit was executed, but its result is gone."""


class SumLost(Exception):
    """One half of a sum is gone; the arguments are its `part`."""


@dataclass(eq=False)
class Worker:
    """One place of the pool, and the actor that holds it now."""

    index: int
    actor: Any
    starting: Any  # reference to the actor's description; None once it is ready
    node: str = ""  # id of its node, once it is ready
    load: int = 0  # units that it has been given
    since: float = 0.0  # when its current unit began
    failed_starts: int = 0


class ActorPool:
    """Executes units on client actors; `spawn(i)` starts the i-th, again when it has died.

    `size` actors are started at once and used as they become ready. More are added, one at a time, as
    long as `another_fits(n)` beside the n that there are: it is asked every second. A unit that takes
    longer than `time_limit` seconds has its actor killed, and is then as one whose actor died.
    """

    def __init__(
        self,
        size: int,
        spawn: Callable[[int], Any],
        another_fits: Callable[[int], bool] = lambda actors: False,
        time_limit: float | None = None,
    ):
        self.lost_units = 0
        self._spawn, self._another_fits, self._time_limit = spawn, another_fits, time_limit
        self._workers: list[Worker] = []
        self._described: list[dict[str, Any]] = []
        self._queue = UnitQueue()
        self._running: dict[Any, tuple[ActorFuture, Worker, Any]] = {}
        # What comes here from another node, and who is told: its value, or None if it is lost.
        self._coming: dict[Any, Callable[[Any], None]] = {}
        self._here = ray.get_runtime_context().get_node_id()
        self._depth, self._unit_s, self._way_s = 1, 0.0, 0.0
        self._looked = self._moved = time.monotonic()
        for _ in range(size):
            self._grow()

    @property
    def actors(self) -> list[Any]:
        """The actors of now, ready or not."""
        return [worker.actor for worker in self._workers]

    def describe(self) -> list[dict[str, Any]]:
        while not self._described or self._starting():
            self._collect(timeout=None)
        return list(self._described)

    def put(self, broadcast: Broadcast) -> Any:
        self._way_s = broadcast.nbytes / LINK_BYTES_PER_S
        return ray.put(broadcast) if broadcast.nbytes > SMALL_BYTES else broadcast

    def store(self, memory: Arrays) -> Any:
        return ray.put(memory)

    def fetch(self, handle: Any) -> Arrays:
        try:
            return ray.get(handle)
        except ObjectLostError as error:
            raise StateLostError(f"a client's memory was lost with its node: {error}") from error

    def train(
        self,
        units: list[WorkUnit],
        samples: list[int],
        broadcast: Any,
        memories: list[list[Any]] | None,
    ) -> ActorTraining:
        futures: list[ActorFuture] = []

        def add(span: Span, node: str, left: Apart, right: Apart) -> None:
            label = f"round {units[0].round}, the sum of units {span.units(len(units))}"
            call = ("add", (left.ref, right.ref), 1)
            future = ActorFuture(call=call, label=label, node=node, part=(spread, span))
            self._queue.put_first(future)  # what waits for a sum is soon everybody

        def again(lost: Sequence[int]) -> None:
            for i in lost:
                futures[i].done = False
                self._again(futures[i], "its sum was lost with its node")

        homes = self._homes(len(units))
        away = [None if home == self._here else home for home in homes]
        spread = SpreadSums(away, add, self._coming.__setitem__, again)
        for i, (unit, home) in enumerate(zip(units, homes, strict=True)):
            given = memories[i] if memories is not None else [None] * len(unit.clients)
            returned = len(unit.clients) if memories is not None else 0
            shown = ", ".join(map(str, unit.clients))
            label = f"round {unit.round}, clients [{shown}]"
            call = ("train", (unit, broadcast, *given), returned)
            part = spread, Span(0, i)
            futures.append(ActorFuture(call=call, label=label, node=home, part=part))
        # The longest go first, so that no actor is left with one at the end.
        self._queue.append(futures[i] for i in sorted(range(len(units)), key=lambda i: -samples[i]))
        self._dispatch()
        return ActorTraining(futures, spread.tree, spread=spread)

    def total(self, training: Training) -> Vectors:
        assert isinstance(training, ActorTraining)
        while not isinstance(training.sums.total, Sum):
            training.spread.bring_total()
            self._collect(timeout=None)
        for future in training.futures:
            assert isinstance(future, ActorFuture)
            # References would keep this round's broadcast and sums in the store.
            future.call, future.part, future.apart = (future.call[0], (), 0), None, None
        return training.sums.total.owned()

    def evaluate(
        self, round: int, broadcast: Any, split: Split, first: int, last: int
    ) -> ActorFuture:
        label = f"round {round}, evaluation of {split} samples {first} to {last}"
        call = ("evaluate", (round, broadcast, split, first, last), 0)
        return self._submit(ActorFuture(call=call, label=label))

    def personal(self, asked: Personal, point: Any, memory: Any) -> ActorFuture:
        label = f"round {asked.round}, the own model of client {asked.client}"
        return self._submit(ActorFuture(call=("personal", (asked, point, memory), 0), label=label))

    def probe(self, round: int, probe: Probe, point: Any, vectors: Any) -> ActorFuture:
        label = f"round {round}, {probe.quantity} on {len(probe.samples)} {probe.split} samples"
        call = ("probe", (round, probe, point, vectors), 0)
        return self._submit(ActorFuture(call=call, label=label))

    def probe_client(
        self, probe: ClientProbe, point: Any, broadcast: Any, memory: Any, vectors: Any
    ) -> ActorFuture:
        (client,) = probe.unit.clients
        label = f"round {probe.unit.round}, {probe.measure} of client {client}"
        call = ("probe_client", (probe, point, broadcast, memory, vectors), 0)
        return self._submit(ActorFuture(call=call, label=label))

    def wait(self, future: Future) -> Any:
        while not future.done:
            self._collect(timeout=None)
        return future.result

    def poll(self) -> None:
        self._collect(timeout=0)

    def _submit(self, future: ActorFuture) -> ActorFuture:
        self._queue.append([future])
        self._dispatch()
        return future

    def _homes(self, units: int) -> list[str | None]:
        """The node for each unit: neighbours go to the same one, as many as it has actors for."""
        nodes = [worker.node for worker in self._workers if worker.starting is None]
        order = [self._here, *nodes]
        ranked = sorted(nodes, key=order.index)
        return [
            ranked[int((i + 0.5) * len(ranked) / units)] if ranked else None for i in range(units)
        ]

    def _dispatch(self) -> None:
        ready = [worker for worker in self._workers if worker.starting is None]
        actors = Counter(worker.node for worker in ready)
        while self._queue:
            free = (worker for worker in ready if worker.load < self._depth)
            for worker in sorted(free, key=attrgetter("load")):
                helps = worker.load == 0 and self._unit_s > self._way_s
                future = self._queue.take(worker.node, helps, actors)
                if future is not None:
                    self._begin(worker, future)
                    break
            else:
                return

    def _begin(self, worker: Worker, future: ActorFuture) -> None:
        method, arguments, returned = future.call
        apart = method == "add"
        if method == "train" and {worker.node, future.node or self._here} != {self._here}:
            apart = not isinstance(arguments[1], Broadcast)  # small sums are better brought at once
            method, returned = ("train_apart", returned + 1) if apart else (method, returned)
        call = getattr(worker.actor, method).options(num_returns=1 + returned)
        refs = call.remote(*arguments)
        ref, *others = refs if returned else [refs]
        future.apart = Apart(others.pop(0)) if apart else None
        future.memories = others
        self._running[ref] = (future, worker, worker.actor)
        future.actor = worker.index
        if worker.load == 0:
            worker.since = time.monotonic()
        worker.load += 1

    def _collect(self, timeout: float | None) -> None:
        """Take in one thing that has happened; wait for it up to `timeout`, and no longer than a while."""
        self._look_around()
        starting = self._starting()
        refs = [*self._running, *starting, *self._coming]
        if not refs:
            return
        wait = LOOK_SECONDS if timeout is None else timeout
        for ref in ray.wait(refs, num_returns=1, timeout=wait)[0]:
            self._moved = time.monotonic()
            if ref in starting:
                self._started(starting[ref], ref)
            elif ref in self._coming:
                self._arrived(ref)
            else:
                self._finished(ref)
        self._dispatch()

    def _finished(self, ref: Any) -> None:
        future, worker, actor = self._running.pop(ref)
        if worker.actor is actor:
            worker.load -= 1
            worker.since = self._moved
        try:
            future.result = self._get(ref, future)
        except (*DEATHS, ResultLost) as error:
            self._lost(future, worker, actor, error)
            return
        except SumLost as error:
            sums, span = error.args
            sums.lost(span)
            return
        future.done = True
        if future.part is None:
            # The arguments' references would keep this round's broadcast in the store.
            future.call = (future.call[0], (), 0)
            return
        sums, span = future.part
        if future.apart is not None:
            sums.tree.arrive(span, future.apart)
        else:
            future.call = (future.call[0], (), 0)
            brought = Sum.of(future.result.sums)
            future.result = without_sums(future.result)
            sums.tree.arrive(span, brought)
        if future.call[0] == "train":
            self._unit_s = future.result.seconds
            self._depth = 2 if self._unit_s < SHORT_UNIT_SECONDS else 1

    def _arrived(self, ref: Any) -> None:
        then = self._coming.pop(ref)
        try:
            value = ray.get(ref)
        except (ObjectLostError, *DEATHS):
            value = None
        then(value)

    def _get(self, ref: Any, future: ActorFuture) -> Any:
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, ClientError):
                raise error.cause from None
            if isinstance(error.cause, ObjectLostError):
                raise self._state_lost(future, error.cause) from error
            raise RunError(f"{future.label}: {error}") from error
        except ObjectLostError as error:
            if error.object_ref_hex == ref.hex():  # done, and lost with its node before it was read
                raise ResultLost from error
            raise self._state_lost(future, error) from error

    @staticmethod
    def _state_lost(future: ActorFuture, error: ObjectLostError) -> Exception:
        if future.part is not None and future.call[0] == "add":
            return SumLost(*future.part)
        return StateLostError(
            f"{future.label}: a memory was lost with its node: {first_line(error)}"
        )

    def _lost(self, future: ActorFuture, worker: Worker, actor: Any, error: Exception) -> None:
        """Replace the actor, if that has not been done yet, and put its unit first in the queue."""
        limit = f" (or took more than {self._time_limit:g} s)" if self._time_limit else ""
        self._again(future, f"the client actor died{limit}", error)
        if worker.actor is actor:  # a result may be lost only with the actor's node
            self._replace(worker)

    def _again(self, future: ActorFuture, why: str, error: Exception | None = None) -> None:
        """Put a unit first in the queue; RunError if that has been done too often."""
        self.lost_units += 1
        future.deaths += 1
        if future.deaths > RETRIES:
            cause = f": {error}" if error else ""
            raise RunError(
                f"{future.label}: {why}, {future.deaths} times in a row{cause}"
            ) from error
        self._queue.put_first(future)

    def _replace(self, worker: Worker) -> None:
        ray.kill(worker.actor)  # one that was only out of reach must not come back
        worker.actor, worker.load = self._spawn(worker.index), 0
        worker.starting = worker.actor.describe.remote()

    def _grow(self) -> None:
        actor = self._spawn(len(self._workers))
        self._workers.append(Worker(len(self._workers), actor, actor.describe.remote()))

    def _starting(self) -> dict[Any, Worker]:
        return {worker.starting: worker for worker in self._workers if worker.starting is not None}

    def _started(self, worker: Worker, ref: Any) -> None:
        try:
            described: Any = ray.get(ref)
        except DEATHS as error:
            worker.failed_starts += 1
            raised = getattr(error, "actor_init_failed", False)
            if raised or worker.failed_starts > START_RETRIES:
                raise RunError(f"a client actor could not start: {error}") from error
            self._replace(worker)
            return
        worker.node = described.pop("node_id")
        self._check_kernels(described)
        self._described.append(described)
        worker.starting, worker.failed_starts = None, 0

    def _check_kernels(self, described: dict[str, Any]) -> None:
        """RunError if this actor rounds differently from the others: no result may depend on who made it."""
        for other in self._described[:1]:
            if bool(other["kernels"]) != bool(described["kernels"]):
                without = other if other["kernels"] else described
                raise RunError(
                    f"the client actors compute with different kernels: node {without['node']} cannot "
                    f"use those of rayfl, others can ({without['kernels']}; Triton needs a C compiler)"
                )

    def _look_around(self) -> None:
        """Every few seconds: is there room for another actor, and does one take too long?"""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if not self._starting() and self._another_fits(len(self._workers)):
            self._grow()
        if self._time_limit is not None:
            for worker in self._workers:
                if worker.load and now - worker.since > self._time_limit:
                    ray.kill(worker.actor)  # its units come back as those of one that died
        if not any(worker.starting is None for worker in self._workers) and (
            now - self._moved > START_SECONDS
        ):
            raise RunError(
                f"no client actor could start within {START_SECONDS / 60:.0f} minutes; the cluster's nodes "
                "have no room for any, or are gone"
            )
