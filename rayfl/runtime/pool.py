"""The pool of client actors that execute the work units.

A pool takes work units first in, first out, and gives a ticket for each. The server waits for the ticket
that it needs next; meanwhile every idle actor takes the next unit. A unit whose actor dies runs again
elsewhere: it is a pure function, so nothing a result depends on is decided here.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rayfl.errors import ClientError, RunError, StateLostError, first_line
from rayfl.training.engine import Arrays, Broadcast, WorkUnit

# An actor whose units take less than this gets its next one before it has finished the last, so that it
# never waits for a message; longer units are worth giving to whoever is idle first.
SHORT_UNIT_SECONDS = 0.1
# A unit that has outlived this many of its actors probably killed them (out of memory, say).
RETRIES = 3


@dataclass(eq=False)
class Ticket:
    """A promise of one unit's result."""

    call: tuple[str, tuple[Any, ...], int]
    """Method of the client, its arguments, and the number of memories that it returns."""
    label: str
    memories: list[Any] = field(default_factory=list)
    """Handle of each client's new memory, if the algorithm has one."""
    result: Any = None
    done: bool = False
    deaths: int = 0
    """Actors that died over it."""


class Pool(Protocol):
    """What the server needs of a pool."""

    lost_units: int
    """Work units that had to run again, so far."""

    def describe(self) -> list[dict[str, Any]]:
        """Where the client actors run, once all of them are ready."""
        ...

    def put(self, broadcast: Broadcast) -> Any:
        """Make a broadcast available to every client; a handle for `train` and `evaluate`."""
        ...

    def store(self, memory: Arrays) -> Any:
        """Make a client's memory available; a handle for `train`."""
        ...

    def fetch(self, handle: Any) -> Arrays:
        """A client's memory, read-only."""
        ...

    def train(self, unit: WorkUnit, broadcast: Any, memories: list[Any] | None) -> Ticket:
        """Queue a work unit. `memories`: a handle or None for each client; None: the algorithm has none."""
        ...

    def evaluate(self, round: int, broadcast: Any, first: int, last: int) -> Ticket:
        """Queue the evaluation of test samples `first` to `last`."""
        ...

    def wait(self, ticket: Ticket) -> Any:
        """The ticket's result; other tickets go on meanwhile. Raises ClientError or RunError."""
        ...

    def poll(self) -> None:
        """Notice what has finished, without waiting."""
        ...


class ResultLost(Exception):
    """A unit was executed, but its result is gone."""


class ActorPool:
    """Executes units on `size` client actors; `spawn(i)` starts the i-th, again when it has died."""

    def __init__(self, size: int, spawn: Callable[[int], Any]):
        self.actors = [spawn(index) for index in range(size)]
        self.lost_units = 0
        self._spawn = spawn
        self._queue: deque[Ticket] = deque()
        self._running: dict[Any, tuple[Ticket, int, Any]] = {}
        self._load = [0] * size
        self._depth = 1

    def describe(self) -> list[dict[str, Any]]:
        return ray.get([actor.describe.remote() for actor in self.actors])

    def put(self, broadcast: Broadcast) -> Any:
        return ray.put(broadcast)

    def store(self, memory: Arrays) -> Any:
        return ray.put(memory)

    def fetch(self, handle: Any) -> Arrays:
        try:
            return ray.get(handle)
        except ObjectLostError as error:
            raise StateLostError(f"a client's memory was lost with its node: {error}") from error

    def train(self, unit: WorkUnit, broadcast: Any, memories: list[Any] | None) -> Ticket:
        given = memories if memories is not None else [None] * len(unit.clients)
        returned = len(unit.clients) if memories is not None else 0
        shown = ", ".join(map(str, unit.clients))
        label = f"round {unit.round}, clients [{shown}]"
        return self._submit(Ticket(("train", (unit, broadcast, *given), returned), label))

    def evaluate(self, round: int, broadcast: Any, first: int, last: int) -> Ticket:
        label = f"round {round}, evaluation of test samples {first} to {last}"
        return self._submit(Ticket(("evaluate", (round, broadcast, first, last), 0), label))

    def wait(self, ticket: Ticket) -> Any:
        while not ticket.done:
            self._collect(timeout=None)
        return ticket.result

    def poll(self) -> None:
        self._collect(timeout=0)

    def _submit(self, ticket: Ticket) -> Ticket:
        self._queue.append(ticket)
        self._dispatch()
        return ticket

    def _dispatch(self) -> None:
        while self._queue and (load := min(self._load)) < self._depth:
            index = self._load.index(load)
            ticket = self._queue.popleft()
            method, arguments, returned = ticket.call
            actor = self.actors[index]
            refs = getattr(actor, method).options(num_returns=1 + returned).remote(*arguments)
            ref, *ticket.memories = refs if returned else [refs]
            self._running[ref] = (ticket, index, actor)
            self._load[index] += 1

    def _collect(self, timeout: float | None) -> None:
        if not self._running:
            return
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        for ref in ready:
            ticket, index, actor = self._running.pop(ref)
            self._load[index] -= 1
            try:
                ticket.result = self._get(ref, ticket)
            except (RayActorError, ResultLost) as error:
                self._lost(ticket, index, actor, error)
                continue
            ticket.done = True
            # The arguments' references would keep this round's broadcast in the store.
            ticket.call = (ticket.call[0], (), 0)
            seconds = getattr(ticket.result, "seconds", None)
            if seconds is not None:
                self._depth = 2 if seconds < SHORT_UNIT_SECONDS else 1
        self._dispatch()

    def _get(self, ref: Any, ticket: Ticket) -> Any:
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, ClientError):
                raise error.cause from None
            if isinstance(error.cause, ObjectLostError):
                raise self._state_lost(ticket, error.cause) from error
            raise RunError(f"{ticket.label}: {error}") from error
        except ObjectLostError as error:
            if error.object_ref_hex == ref.hex():  # done, and lost with its node before it was read
                raise ResultLost from error
            raise self._state_lost(ticket, error) from error

    @staticmethod
    def _state_lost(ticket: Ticket, error: ObjectLostError) -> StateLostError:
        return StateLostError(
            f"{ticket.label}: a memory was lost with its node: {first_line(error)}"
        )

    def _lost(self, ticket: Ticket, index: int, actor: Any, error: Exception) -> None:
        """Replace the actor, if that has not been done yet, and put its unit first in the queue."""
        self.lost_units += 1
        ticket.deaths += 1
        if ticket.deaths > RETRIES:
            raise RunError(
                f"{ticket.label}: the client actor died, {ticket.deaths} times in a row: {error}"
            ) from error
        if self.actors[index] is actor:  # a result may be lost only with the actor's node
            ray.kill(actor)  # one that was only out of reach must not come back
            self.actors[index] = self._spawn(index)
        self._queue.appendleft(ticket)
