"""The sums of a round's work units, on the nodes that made them until they must travel.

Neighbours of the tree that are on one node are added there, by one of its actors, and only their sum goes on;
what this process's own node has made, this process adds.
"""

import functools
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
            self._come(self.tree.root, total, functools.partial(self.tree.arrive, self.tree.root))

    def _join(self, span: Span, left: Sum | Apart, right: Sum | Apart) -> Sum | None:
        first, second = span.halves
        if isinstance(left, Apart):
            if isinstance(right, Apart):
                self._add(span, left, right)
            else:
                self._add_here(span, first, left, second, right)
        elif isinstance(right, Apart):
            self._add_here(span, second, right, first, left)
        else:
            return left.plus(right)
        return None

    def _add_here(self, span: Span, half: Span, apart: Apart, other: Span, here: Sum) -> None:
        """Bring one half of a span to the other; if it is lost, that waits for it again."""
        self._come(
            half,
            apart,
            lambda brought: self.tree.arrive(span, brought.plus(here)),
            lambda: self.tree.arrive(other, here),
        )

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
