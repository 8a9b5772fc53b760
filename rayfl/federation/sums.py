"""The sum over a round's work units, along a binary tree over them.

A sum of floating-point numbers depends on the order of its additions. Here that follows from the number of
units alone: a span covers 2^level neighbours, and its sum is that of its two halves. So neighbours can be
added wherever they are, as soon as both are there, and the bits are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from rayfl.algorithms.base import Vectors
from rayfl.training.batches import as_tensor
from rayfl.training.units import Arrays


class Span(NamedTuple):
    """The units from `index * 2 ** level` to, without it, `(index + 1) * 2 ** level`."""

    level: int
    index: int

    @property
    def parent(self) -> "Span":
        return Span(self.level + 1, self.index // 2)

    @property
    def sibling(self) -> "Span":
        return Span(self.level, self.index ^ 1)

    @property
    def halves(self) -> tuple["Span", "Span"]:
        return Span(self.level - 1, 2 * self.index), Span(self.level - 1, 2 * self.index + 1)

    def units(self, count: int) -> range:
        """Units of the span, if there are `count` in all."""
        first = self.index << self.level
        return range(first, min(first + (1 << self.level), count))


class SumTree:
    """The sums of one round that are there, until they are one.

    `join(span, left, right)` adds the sums of a span's halves; None: its sum comes later, by `arrive`.
    """

    def __init__(self, units: int, join: Callable[[Span, Any, Any], Any]):
        self.units, self._join = units, join
        self._waiting: dict[Span, Any] = {}
        self.root = Span((units - 1).bit_length(), 0)
        self.total: Any = None
        """The sum of all units; None as long as one is missing."""

    def arrive(self, span: Span, value: Any) -> None:
        """Take in the sum of a span, and add it to its neighbour's if that is there."""
        while span != self.root:
            sibling = span.sibling
            if sibling.units(self.units):
                if sibling not in self._waiting:
                    self._waiting[span] = value
                    return
                other = self._waiting.pop(sibling)
                halves = (value, other) if span.index % 2 == 0 else (other, value)
                value = self._join(span.parent, *halves)
                if value is None:
                    return
            span = span.parent
        self.total = value


@dataclass(eq=False)
class Sum:
    """A sum that this process has."""

    vectors: Vectors
    is_own: bool = False
    """True: nobody else has these tensors, and they may be written to."""

    @classmethod
    def of(cls, arrays: Arrays) -> "Sum":
        return cls({name: as_tensor(array) for name, array in arrays.items()})

    def plus(self, other: "Sum") -> "Sum":
        """Their sum, in the memory of one of both if that may be written to."""
        if other.is_own and not self.is_own:
            return other.plus(self)
        if not self.is_own:
            return Sum({name: v + other.vectors[name] for name, v in self.vectors.items()}, True)
        for name, value in self.vectors.items():
            value += other.vectors[name]
        return self

    def owned(self) -> Vectors:
        """The vectors, for whoever wants to write to them."""
        if self.is_own:
            return self.vectors
        return {name: value.clone() for name, value in self.vectors.items()}
