"""Pools execute work units: client actors on a cluster, or this process.

A pool takes work units first in, first out, and gives a ticket for each. The server waits for the ticket
that it needs next; meanwhile every idle actor takes the next unit. Nothing a result depends on is decided
here.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from rayfl.errors import ClientError, RunError
from rayfl.runtime.client import Client
from rayfl.training.engine import Broadcast, WorkUnit

# An actor whose units take less than this gets its next one before it has finished the last, so that it
# never waits for a message; longer units are worth giving to whoever is idle first.
SHORT_UNIT_SECONDS = 0.05


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


class Pool(Protocol):
    """What the server needs of a pool."""

    def put(self, broadcast: Broadcast) -> Any:
        """Make a broadcast available to every client; a handle for `train` and `evaluate`."""
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


class LocalPool:
    """Executes every unit at once in this process: the reference that any other pool must equal."""

    def __init__(self, client: Client):
        self.client = client

    def put(self, broadcast: Broadcast) -> Broadcast:
        return broadcast

    def train(self, unit: WorkUnit, broadcast: Any, memories: list[Any] | None) -> Ticket:
        given = memories if memories is not None else [None] * len(unit.clients)
        ticket = Ticket(("train", (), 0), "", done=True)
        ticket.result = self.client.train(unit, broadcast, *given)
        if memories is not None:
            ticket.result, *ticket.memories = ticket.result
        return ticket

    def evaluate(self, round: int, broadcast: Any, first: int, last: int) -> Ticket:
        result = self.client.evaluate(round, broadcast, first, last)
        return Ticket(("evaluate", (), 0), "", result=result, done=True)

    def wait(self, ticket: Ticket) -> Any:
        return ticket.result

    def poll(self) -> None:
        pass


class ActorPool:
    """Executes units on client actors."""

    def __init__(self, actors: list[Any]):
        self.actors = actors
        self._queue: deque[Ticket] = deque()
        self._running: dict[Any, tuple[Ticket, int]] = {}
        self._load = [0] * len(actors)
        self._depth = 1

    def put(self, broadcast: Broadcast) -> Any:
        return ray.put(broadcast)

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
            remote = getattr(self.actors[index], method)
            refs = remote.options(num_returns=1 + returned).remote(*arguments)
            ref, *ticket.memories = refs if returned else [refs]
            self._running[ref] = (ticket, index)
            self._load[index] += 1

    def _collect(self, timeout: float | None) -> None:
        if not self._running:
            return
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        for ref in ready:
            ticket, index = self._running.pop(ref)
            self._load[index] -= 1
            ticket.result = self._get(ref, ticket)
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
            raise RunError(f"{ticket.label}: {error}") from error
        except RayActorError as error:
            raise RunError(f"{ticket.label}: the client actor died: {error}") from error
