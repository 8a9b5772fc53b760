"""Sums along a tree: a matter of the number of units alone."""

import random

import numpy as np
import pytest
import torch

from rayfl.federation.sums import Span, Sum, SumTree

COUNTS = pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11, 16, 37])


def arrays(i):
    rng = np.random.default_rng(i)
    return {
        "delta": rng.normal(size=50).astype(np.float32) * 10.0**i,
        "one": np.ones(1, np.float32),
    }


def expected(first, last):
    """The sum of the units from `first` to `last`, whose number is rounded up to a power of two."""
    if last - first == 1:
        return arrays(first)
    half = first + (1 << (last - first - 1).bit_length() - 1)
    left, right = expected(first, half), expected(half, last)
    return {name: left[name] + right[name] for name in left}


def plus(span, left, right):
    return left.plus(right)


@COUNTS
def test_any_order_of_arrival_gives_the_same_bits(count):
    for seed in range(20):
        tree, order = SumTree(count, plus), list(range(count))
        random.Random(seed).shuffle(order)
        for i in order:
            assert tree.total is None
            tree.arrive(Span(0, i), Sum.of(arrays(i)))
        total = tree.total.owned()
        for name, value in expected(0, count).items():
            np.testing.assert_array_equal(total[name], value)
        assert total["one"] == count


@COUNTS
def test_sums_that_come_later(count):
    """As those that another node makes."""
    later = []

    def join(span, left, right):
        later.append((span, left, right))

    tree, rng = SumTree(count, join), random.Random(count)
    for i in range(count):
        tree.arrive(Span(0, i), [i])
    while later:
        span, left, right = later.pop(rng.randrange(len(later)))
        assert left + right == list(span.units(count))
        tree.arrive(span, left + right)
    assert tree.total == list(range(count))


def test_what_others_have_is_not_written_to():
    left, right = arrays(0), arrays(1)
    for array in (*left.values(), *right.values()):
        array.flags.writeable = False  # as in the object store
    before = {name: value.copy() for name, value in left.items()}
    total = Sum.of(left).plus(Sum.of(right))
    again = Sum.of(left).plus(total)  # may write to the second
    assert again is total
    for vector in again.owned().values():
        vector.zero_()
    for vector in Sum.of(left).owned().values():
        vector.zero_()
    for name, value in before.items():
        np.testing.assert_array_equal(left[name], value)


def test_few_sums_are_held_at_a_time():
    """In the order of the units no more than one for each level."""
    held, most = set(), 0

    class Counted(Sum):
        def plus(self, other):
            held.discard(other)
            return self

    tree = SumTree(64, plus)
    for i in range(64):
        one = Counted({"delta": torch.zeros(1)})
        held.add(one)
        tree.arrive(Span(0, i), one)
        most = max(most, len(held))
    assert most == 6
