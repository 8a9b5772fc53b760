"""The protocol between server and clients, and the pool that needs no other process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayfl.algorithms.base import Vectors
from rayfl.federation.client import Client
from rayfl.federation.sums import Span, Sum, SumTree
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


@dataclass(eq=False)
class Future:
    """The result of one unit, once it is `done`."""

    # Handle of each client's new memory, if the algorithm has one.
    memories: list[Any] = field(default_factory=list)
    result: Any = None
    done: bool = False
    actor: int = 0  # place in the pool of the actor that has it, or had it last


@dataclass(eq=False)
class RoundTraining:
    """The work units of a round, under way: futures of `UnitResult`, whose `sums` are in the tree."""

    futures: Sequence[Future]
    sums: SumTree


class Pool(Protocol):
    """A set of clients that execute work units."""

    lost_units: int  # work units that had to run again, so far

    def describe(self) -> list[dict[str, Any]]:
        """Each client process, once all of them are ready."""
        ...

    def put(self, broadcast: Broadcast) -> Any:
        """Make a broadcast available to every client; a handle for `train` and `evaluate`."""
        ...

    def store(self, memory: Arrays) -> Any:
        """Make a client's memory, or a probe's vectors, available; a handle for `train` or `probe`."""
        ...

    def fetch(self, handle: Any) -> Arrays:
        """A client's memory, read-only."""
        ...

    def train(
        self,
        units: list[WorkUnit],
        samples: list[int],
        broadcast: Any,
        memories: list[list[Any]] | None,
    ) -> RoundTraining:
        """Queue the work units of a round, each with so many training samples.

        `memories`: of each unit a handle or None for each client; None: the algorithm has none.
        """
        ...

    def total(self, training: RoundTraining) -> Vectors:
        """The units' sums, added along the tree; the caller may write to them. Raises as `wait`."""
        ...

    def evaluate(self, round: int, broadcast: Any, split: Split, first: int, last: int) -> Future:
        """Queue the evaluation of the split's samples `first` to `last`."""
        ...

    def personal(self, asked: Personal, point: Any, memory: Any) -> Future:
        """Queue the evaluation of a client's own model; `point`: the global one; `memory`: handle or None."""
        ...

    def probe(self, round: int, probe: Probe, point: Any, vectors: Any) -> Future:
        """Queue a probe around the start of the broadcast `point`; `vectors`: a handle of `store`."""
        ...

    def probe_client(
        self, probe: ClientProbe, point: Any, broadcast: Any, memory: Any, vectors: Any
    ) -> Future:
        """Queue a question about one client; the others as `Client.probe_client`, by their handles."""
        ...

    def wait(self, future: Future) -> Any:
        """The future's result; other futures go on meanwhile. Raises ClientError or RunError."""
        ...

    def poll(self) -> None:
        """Notice what has finished, without waiting."""
        ...


class LocalPool:
    """Executes every unit at once, in this process: the reference that any other pool must equal."""

    def __init__(self, client: Client):
        self.client = client
        self.lost_units = 0

    def describe(self) -> list[dict[str, Any]]:
        return [self.client.describe()]

    def put(self, broadcast: Broadcast) -> Any:
        return broadcast

    def store(self, memory: Arrays) -> Any:
        return memory

    def fetch(self, handle: Any) -> Arrays:
        return handle

    def train(
        self,
        units: list[WorkUnit],
        samples: list[int],
        broadcast: Any,
        memories: list[list[Any]] | None,
    ) -> RoundTraining:
        sums, futures = SumTree(len(units), lambda span, left, right: left.plus(right)), []
        for i, unit in enumerate(units):
            given: list[Arrays | None] = memories[i] if memories else [None] * len(unit.clients)
            result, new = self.client.train(unit, broadcast, given)
            sums.arrive(Span(0, i), Sum.of(result.sums))
            futures.append(Future(result=without_sums(result), memories=new, done=True))
        return RoundTraining(futures, sums)

    def total(self, training: RoundTraining) -> Vectors:
        return training.sums.total.owned()

    def evaluate(self, round: int, broadcast: Any, split: Split, first: int, last: int) -> Future:
        result = self.client.evaluate(round, broadcast, split, first, last)
        return Future(result=result, done=True)

    def personal(self, asked: Personal, point: Any, memory: Any) -> Future:
        return Future(result=self.client.personal(asked, point, memory), done=True)

    def probe(self, round: int, probe: Probe, point: Any, vectors: Any) -> Future:
        return Future(result=self.client.probe(round, probe, point, vectors), done=True)

    def probe_client(
        self, probe: ClientProbe, point: Any, broadcast: Any, memory: Any, vectors: Any
    ) -> Future:
        result = self.client.probe_client(probe, point, broadcast, memory, vectors)
        return Future(result=result, done=True)

    def wait(self, future: Future) -> Any:
        return future.result

    def poll(self) -> None:
        pass


def without_sums(result: UnitResult) -> UnitResult:
    """The result without its sums, and without a reference to the object that they came in."""
    return result._replace(sums={}, losses=result.losses.copy(), drifts=result.drifts.copy())
