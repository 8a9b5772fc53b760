"""The sums of a round's work units, on the nodes that made them until they must travel.

Each span of the tree has a home: that of its first unit. Sums are added there, by one of its actors; those
whose home is this process's own node, this process adds. A unit that another node has trained costs one way
of its sum, and no more.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rayfl.federation.sums import Span, Sum, SumTree


@dataclass(frozen=True)
class Apart:
    """A sum in the object store, of this node or another."""

    ref: Any


class SpreadSums:
    """The tree of one round over several nodes.

    `homes`: id of each unit's node, those of this node (None) first. `add(span, node, left, right)` has two
    sums added on a node; `bring(ref, then)` brings a sum here, and calls `then` with its arrays, or with None
    if it is lost; `again(units)` has units trained again. Whatever becomes of a sum later comes by
    `tree.arrive` or `lost`.
    """

    def __init__(
        self,
        homes: Sequence[str | None],
        add: Callable[[Span, str, Apart, Apart], None],
        bring: Callable[[Any, Callable[[Any], None]], None],
        again: Callable[[Sequence[int]], None],
    ):
        self.tree = SumTree(len(homes), self._join)
        self._homes, self._add, self._bring, self._again = homes, add, bring, again

    def lost(self, span: Span) -> None:
        """Train the units of a span again, whose sum went with its node."""
        self._again(span.units(self.tree.units))

    def bring_total(self) -> None:
        """Bring the sum of all units here, if it is made and somewhere else."""
        total = self.tree.total
        if isinstance(total, Apart):
            self.tree.total = None
            self._come(self.tree.root, total, functools.partial(self.tree.arrive, self.tree.root))

    def _join(self, span: Span, left: Sum | Apart, right: Sum | Apart) -> Sum | None:
        home = self._homes[span.units(self.tree.units)[0]]
        if isinstance(left, Sum) and isinstance(right, Sum):
            return left.plus(right)
        if home is not None and isinstance(left, Apart) and isinstance(right, Apart):
            self._add(span, home, left, right)
        elif isinstance(left, Apart):
            self._come_to(span, left, right, is_left=True)
        elif isinstance(right, Apart):
            self._come_to(span, right, left, is_left=False)
        return None

    def _come_to(self, span: Span, apart: Apart, other: Sum | Apart, is_left: bool) -> None:
        """Bring one half of a span here, and add the other; if it is lost, the other waits for it."""
        half, others = span.halves if is_left else span.halves[::-1]

        def then(brought: Sum) -> None:
            value = self._join(span, *((brought, other) if is_left else (other, brought)))
            if value is not None:
                self.tree.arrive(span, value)

        self._come(half, apart, then, lambda: self.tree.arrive(others, other))

    def _come(
        self,
        span: Span,
        apart: Apart,
        then: Callable[[Sum], None],
        otherwise: Callable[[], None] = lambda: None,
    ) -> None:
        def arrived(arrays: Any) -> None:
            if arrays is not None:
                then(Sum.of(arrays))
                return
            otherwise()
            self.lost(span)

        self._bring(apart.ref, arrived)
