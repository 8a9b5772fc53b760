"""Sums over nodes, in simulated clusters: any assignment, order and death of nodes give the same bits."""

import random

import numpy as np
import pytest

from rayfl.federation.sums import Span, Sum, SumTree
from rayfl.runtime.sums import Apart, SpreadSums

HERE = "here"


def arrays(unit):
    return {
        "delta": np.random.default_rng(unit).normal(size=9).astype(np.float32) * 7.0 ** (unit % 6)
    }


def expected(count):
    tree = SumTree(count, lambda span, left, right: left.plus(right))
    for i in range(count):
        tree.arrive(Span(0, i), Sum.of(arrays(i)))
    return tree.total.vectors["delta"].numpy()


class Simulation:
    """Events in a random order, on nodes of which some die; `self.moved`: sums that came here."""

    def __init__(self, seed, count, nodes, deaths=0, stolen=0.0):
        self.rng, self.count, self.nodes, self.deaths = random.Random(seed), count, nodes, deaths
        self.stolen = stolen
        self.kept = {}  # what each node has, by reference
        self.events, self.moved, self.travelled, self.trained, self.done = [], 0, 0, 0, set()
        self.sums = SpreadSums(
            [self.home_of(unit) for unit in range(count)], self.add, self.bring, self.again
        )
        self.again(range(count))

    def home_of(self, unit):
        home = self.nodes[unit * len(self.nodes) // self.count]
        return None if home == HERE else home

    def node_of(self, unit):
        """The node that trains it: its home, or one that has nothing left to do."""
        if self.rng.random() < self.stolen:
            return self.rng.choice(self.nodes)
        return self.home_of(unit) or HERE

    def again(self, units):
        for unit in units:
            self.trained += 1
            self.events.append(lambda unit=unit: self.train(unit))

    def train(self, unit):
        node, is_here = self.node_of(unit), self.home_of(unit) is None
        assert unit not in self.done  # what is here cannot be lost
        if node == HERE and is_here:
            self.done.add(unit)
            value = Sum.of(arrays(unit))
        else:
            value = self.keep(node, arrays(unit))
        self.sums.tree.arrive(Span(0, unit), value)

    def keep(self, node, value):
        ref = object()
        self.kept[ref] = (node, value)
        return Apart(ref)

    def add(self, span, node, left, right):
        def done():
            if left.ref in self.kept and right.ref in self.kept:
                (one, a), (other, b) = self.kept.pop(left.ref), self.kept.pop(right.ref)
                self.travelled += (one != node) + (other != node)
                total = {"delta": a["delta"] + b["delta"]}
                self.sums.tree.arrive(span, self.keep(node, total))
            else:
                self.sums.lost(span)

        self.events.append(done)

    def bring(self, ref, then):
        self.moved += self.kept[ref][0] != HERE if ref in self.kept else 0
        self.events.append(lambda: then(self.kept.pop(ref, (None, None))[1]))

    def run(self):
        while not isinstance(self.sums.tree.total, Sum):
            self.sums.bring_total()
            if self.deaths and self.kept and self.rng.random() < 0.2:
                self.deaths -= 1
                dead = self.rng.choice([node for node in self.nodes if node != HERE])
                self.kept = {ref: kept for ref, kept in self.kept.items() if kept[0] != dead}
            if self.events:
                self.events.pop(self.rng.randrange(len(self.events)))()
        return self.sums.tree.total.vectors["delta"].numpy()


@pytest.mark.parametrize("count", [1, 2, 5, 8, 13, 32])
@pytest.mark.parametrize("nodes", [[HERE], ["a"], [HERE, "a"], ["a", "b", "c"], [HERE, *"abcdefg"]])
def test_the_same_bits_wherever_units_ran_and_whatever_died(count, nodes):
    for seed in range(10):
        deaths = 3 if nodes != [HERE] else 0
        found = Simulation(seed, count, nodes, deaths, stolen=0.3 * (seed % 2))
        np.testing.assert_array_equal(found.run(), expected(count))


def test_one_sum_travels_for_each_node_and_one_comes_here_for_each_level():
    simulation = Simulation(0, 64, [HERE, *"abcdefg"])
    simulation.run()
    assert simulation.moved == 3
    assert simulation.moved + simulation.travelled == 7
    everything_apart = Simulation(0, 64, list("abcdefgh"))
    everything_apart.run()
    assert (everything_apart.moved, everything_apart.travelled) == (1, 7)


def test_a_unit_of_another_nodes_share_costs_one_way_of_its_sum():
    for seed in range(10):
        simulation = Simulation(seed, 64, [HERE, *"abcdefg"], stolen=0.2)
        node_of, away = simulation.node_of, []

        def noted(unit, node_of=node_of, away=away, simulation=simulation):
            node = node_of(unit)
            away.append(node != (simulation.home_of(unit) or HERE))
            return node

        simulation.node_of = noted
        simulation.run()
        assert simulation.moved + simulation.travelled == 7 + sum(away) > 7


def test_what_is_not_lost_is_not_trained_again():
    trained = []
    for seed in range(20):
        simulation = Simulation(seed, 32, [HERE, "a", "b", "c"], deaths=1)
        simulation.run()
        trained.append(simulation.trained)
    assert all(32 <= n <= 32 + 16 for n in trained)  # of two nodes at most
    assert max(trained) > 32
