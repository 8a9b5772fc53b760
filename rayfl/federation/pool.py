"""The pool of workers that the server gives its work units to."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from rayfl.training.engine import Arrays, Broadcast, WorkUnit


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
    actor: int = 0
    """Place in the pool of the actor that has it, or had it last."""
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
