"""The pool of client actors, which execute the work units.

A pool gives a future for each work unit. The server waits for the future that it needs next; meanwhile
every idle actor takes the next unit, of its own node's share first, so that neighbours' sums are made on
one node. A unit whose actor dies runs again elsewhere; no result depends on that, for it is a pure function.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from rayfl.algorithms.base import Vectors
from rayfl.errors import ClientError, RunError, StateLostError, first_line
from rayfl.federation.pool import Future, RoundTraining, without_sums
from rayfl.federation.sums import Span, Sum
from rayfl.runtime.queue import ActorFuture, UnitQueue
from rayfl.runtime.sums import Apart, SpreadSums
from rayfl.runtime.workers import DEATHS, LOOK_SECONDS, Worker, Workers
from rayfl.training.units import Arrays, Broadcast, ClientProbe, Personal, Probe, Split, WorkUnit

# An actor whose units take less than this gets its next one before it has finished the last, so that it
# never waits for a message; longer units are worth giving to whoever is idle first.
SHORT_UNIT_SECONDS = 0.1
# A broadcast of no more bytes than this travels in the calls themselves, as Ray sends small arguments anyway:
# to take it from the object store costs an actor more.
SMALL_BYTES = 64 * 1024
# Speed of a link: an idle actor takes another node's unit only if that takes longer than its sum's way there.
LINK_BYTES_PER_S = 125e6
# A unit that has outlived this many of its actors probably killed them (out of memory, say).
RETRIES = 3


@dataclass(eq=False, kw_only=True)
class ActorTraining(RoundTraining):
    """The work units of a round on client actors."""

    spread: SpreadSums


class ResultLost(Exception):
    """A unit was executed, but its result is gone."""


class SumLost(Exception):
    """One half of a sum is gone."""


class ActorPool:
    """Executes units on client actors; the arguments are those of `Workers`.

    A unit that takes longer than `time_limit` seconds is as one whose actor died.
    """

    def __init__(
        self,
        size: int,
        spawn: Callable[[int], Any],
        another_fits: Callable[[int], bool] = lambda actors: False,
        time_limit: float | None = None,
    ):
        self.lost_units = 0
        self._time_limit = time_limit
        self._workers = Workers(size, spawn, another_fits, time_limit)
        self._queue = UnitQueue()
        self._running: dict[Any, tuple[ActorFuture, Worker, Any]] = {}
        # Objects on their way here from another node, and who is told: the value, or None if it is lost.
        self._coming: dict[Any, Callable[[Any], None]] = {}
        self._here = ray.get_runtime_context().get_node_id()
        self._depth, self._unit_s, self._way_s = 1, 0.0, 0.0

    @property
    def actors(self) -> list[Any]:
        """The actors of now, ready or not."""
        return self._workers.actors

    def describe(self) -> list[dict[str, Any]]:
        while not self._workers.described or self._workers.starting():
            self._collect(timeout=None)
        return list(self._workers.described)

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

        homes = self._workers.homes(self._here, len(units))
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

    def total(self, training: RoundTraining) -> Vectors:
        assert isinstance(training, ActorTraining)
        while not isinstance(training.sums.total, Sum):
            training.spread.bring_total()
            self._collect(timeout=None)
        for future in training.futures:
            assert isinstance(future, ActorFuture)
            future.let_go()
            future.part, future.apart = None, None
        return training.sums.total.owned()

    def evaluate(
        self, round: int, broadcast: Any, split: Split, first: int, last: int
    ) -> ActorFuture:
        label = f"round {round}, evaluation of {split} samples {first} to {last}"
        return self._submit(label, "evaluate", round, broadcast, split, first, last)

    def personal(self, asked: Personal, point: Any, memory: Any) -> ActorFuture:
        label = f"round {asked.round}, the own model of client {asked.client}"
        return self._submit(label, "personal", asked, point, memory)

    def probe(self, round: int, probe: Probe, point: Any, vectors: Any) -> ActorFuture:
        label = f"round {round}, {probe.quantity} on {len(probe.samples)} {probe.split} samples"
        return self._submit(label, "probe", round, probe, point, vectors)

    def probe_client(
        self, probe: ClientProbe, point: Any, broadcast: Any, memory: Any, vectors: Any
    ) -> ActorFuture:
        (client,) = probe.unit.clients
        label = f"round {probe.unit.round}, {probe.measure} of client {client}"
        return self._submit(label, "probe_client", probe, point, broadcast, memory, vectors)

    def wait(self, future: Future) -> Any:
        while not future.done:
            self._collect(timeout=None)
        return future.result

    def poll(self) -> None:
        self._collect(timeout=0)

    def _submit(self, label: str, method: str, *arguments: Any) -> ActorFuture:
        future = ActorFuture(call=(method, arguments, 0), label=label)
        self._queue.append([future])
        self._dispatch()
        return future

    def _dispatch(self) -> None:
        ready = self._workers.ready()
        actors = Counter(worker.node for worker in ready)
        while self._queue:
            free = (worker for worker in ready if worker.load < self._depth)
            for worker in sorted(free, key=lambda worker: worker.load):
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
        self._workers.look_around()
        starting = self._workers.starting()
        refs = [*self._running, *starting, *self._coming]
        if not refs:
            return
        wait = LOOK_SECONDS if timeout is None else timeout
        for ref in ray.wait(refs, num_returns=1, timeout=wait)[0]:
            self._workers.moved = time.monotonic()
            if ref in starting:
                self._workers.started(starting[ref], ref)
            elif ref in self._coming:
                self._arrived(ref)
            else:
                self._finished(ref)
        self._dispatch()

    def _finished(self, ref: Any) -> None:
        future, worker, actor = self._running.pop(ref)
        if worker.actor is actor:
            worker.load -= 1
            worker.since = self._workers.moved
        try:
            future.result = self._get(ref, future)
        except (*DEATHS, ResultLost) as error:
            limit = f" (or took more than {self._time_limit:g} s)" if self._time_limit else ""
            self._again(future, f"the client actor died{limit}", error)
            if (
                worker.actor is actor
            ):  # it may be replaced already; and a result is lost with its node
                self._workers.replace(worker)
            return
        except SumLost:
            assert future.part is not None
            sums, span = future.part
            sums.lost(span)
            return
        future.done = True
        if future.apart is None:
            future.let_go()
        if future.part is None:
            return
        sums, span = future.part
        if future.apart is not None:
            sums.tree.arrive(span, future.apart)  # may be lost with its node: then it is made again
        else:
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
            if not isinstance(error.cause, ObjectLostError):
                raise RunError(f"{future.label}: {error}") from error
            lost = error.cause
        except ObjectLostError as error:
            if error.object_ref_hex == ref.hex():  # done, and lost with its node before it was read
                raise ResultLost from error
            lost = error
        if future.call[0] == "add":
            raise SumLost from lost
        raise StateLostError(f"{future.label}: a memory was lost with its node: {first_line(lost)}")

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
