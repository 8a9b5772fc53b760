"""The sums of a round's work units, on the nodes that made them until they must travel.

Neighbours of the tree that are on one node are added there, by one of its actors, and only their sum goes on;
what this process's own node has made, this process adds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rayfl.federation.sums import Span, Sum, SumTree


@dataclass(frozen=True)
class Apart:
    """A sum in the object store of another node."""

    ref: Any
    node: str


class SpreadSums:
    """The tree of one round over several nodes.

    `add(span, left, right)` has two sums added on the node of the first; `bring(ref, then)` brings a sum
    here, and calls `then` with its arrays, or with None if it is lost; `again(units)` has units trained
    again. Whatever becomes of a sum later comes by `tree.arrive` or `lost`.
    """

    def __init__(
        self,
        units: int,
        add: Callable[[Span, Apart, Apart], None],
        bring: Callable[[Any, Callable[[Any], None]], None],
        again: Callable[[Sequence[int]], None],
    ):
        self.tree = SumTree(units, self._join)
        self._add, self._bring, self._again = add, bring, again

    def lost(self, span: Span) -> None:
        """Train the units of a span again, whose sum went with its node."""
        self._again(span.units(self.tree.units))

    def bring_total(self) -> None:
        """Bring the sum of all units here, if it is made and somewhere else."""
        total = self.tree.total
        if isinstance(total, Apart):
            self.tree.total = None
            self._here(self.tree.root, total, None)

    def _join(self, span: Span, left: Sum | Apart, right: Sum | Apart) -> Sum | None:
        if isinstance(left, Apart):
            if isinstance(right, Apart):
                self._add(span, left, right)
            else:
                self._here(span, left, right)
        elif isinstance(right, Apart):
            self._here(span, right, left)
        else:
            return left.plus(right)
        return None

    def _here(self, span: Span, apart: Apart, other: Sum | None) -> None:
        """Bring one half of a span here, and add the other, if there is one."""

        def then(arrays: Any) -> None:
            if arrays is None:
                self.lost(span)
                return
            brought = Sum.of(arrays)
            self.tree.arrive(span, brought if other is None else brought.plus(other))

        self._bring(apart.ref, then)
