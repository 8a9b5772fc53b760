"""The queue of units that wait for a client actor."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rayfl.federation.pool import Future
from rayfl.federation.sums import Span
from rayfl.runtime.sums import Apart, SpreadSums


@dataclass(eq=False, kw_only=True)
class ActorFuture(Future):
    """A unit that is queued, or at work on an actor."""

    # Method of the client actor, its arguments, and the number of memories that it returns.
    call: tuple[str, tuple[Any, ...], int]
    label: str
    deaths: int = 0  # actors that died over it
    node: str | None = None  # id of the node to do it on, rather than on others; None: any
    # The round's sums, and the units that its own covers; None: it makes none.
    part: tuple[SpreadSums, Span] | None = None
    apart: Apart | None = None  # its sum, where another node has it

    def let_go(self) -> None:
        """Forget the arguments: their references would keep the round's broadcast in the store."""
        self.call = (self.call[0], (), 0)


class UnitQueue:
    """First in, first out; but each node takes its own share first, and then of the others'."""

    def __init__(self) -> None:
        self._waiting: deque[ActorFuture] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def append(self, futures: Iterable[ActorFuture]) -> None:
        self._waiting.extend(futures)

    def put_first(self, future: ActorFuture) -> None:
        self._waiting.appendleft(future)

    def take(self, node: str, helps: bool, actors: Counter[str]) -> ActorFuture | None:
        """Return the next unit of an actor on this node; None: there is nothing for it now.

        `helps`: it takes what is meant for another node, if nothing else is left. `actors`: the number of
        them on each node.
        """
        if len(actors) == 1:
            return self._waiting.popleft() if self._waiting else None
        future = self._chosen(node, helps, actors)
        if future is not None:
            self._waiting.remove(future)
        return future

    def _chosen(self, node: str, helps: bool, actors: Counter[str]) -> ActorFuture | None:
        shares: dict[str, list[ActorFuture]] = {}  # training that other nodes are meant for
        for future in self._waiting:
            if future.node == node or (future.node and future.node not in actors):
                return future
            if future.node is None:
                if not shares:
                    return future
                break
            if future.call[0] == "train":
                shares.setdefault(future.node, []).append(future)
        if not shares or not helps:
            return None
        # The last, which is the shortest, of the node with most left to do for each of its actors.
        return shares[max(shares, key=lambda other: len(shares[other]) / actors[other])][-1]
