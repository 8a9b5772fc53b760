"""Cohorts of any size, clients that are lost and clients that stop early: the server stays right."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import rarely
from local_pool import a_server

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.config.schema import load_config
from rayfl.federation.metrics import RoundMetrics
from rayfl.federation.pool import LocalPool
from rayfl.federation.sampling import survivors
from rayfl.prepare import prepare

ALONE = [
    {"sampling": "bernoulli"},
    {"sampling": "weighted"},
    {"client_dropout": 0.4},
    {"straggler_prob": 0.5},
]
TOGETHER = {"sampling": "bernoulli", "client_dropout": 0.4, "straggler_prob": 0.5}
OPTIONS = [*rarely(ALONE), TOGETHER]


@dataclass(frozen=True, kw_only=True)
class Counts(Algorithm):
    """Uploads a one: its mean, and the server's context, tell over how many clients it was taken."""

    def init_server(self, w):
        return {"mean": w[:1] * 0, "participation": w[:1] * 0}

    def upload(self, delta, memory, ctx):
        return {"delta": delta, "one": torch.ones_like(delta[..., :1])}, memory

    def server_step(self, w, server, mean, ctx):
        state = {"mean": mean["one"], "participation": torch.full_like(w[:1], ctx.participation)}
        return w + mean["delta"], state


class RecordingPool(LocalPool):
    """Keeps what went down and came up: units, memories given and memories returned."""

    def __init__(self, client):
        super().__init__(client)
        self.trained = []

    def train(self, units, samples, broadcast, memories):
        training = super().train(units, samples, broadcast, memories)
        given = memories or [None] * len(units)
        self.trained += zip(units, given, training.futures, strict=True)
        return training


def here(prepared, algorithm):
    """The server after all rounds, its pool, and each round's metrics."""
    server = a_server(prepared, algorithm, pool=RecordingPool)
    rounds = {m.round: m.values for m in server.run() if isinstance(m, RoundMetrics)}
    return server, server.pool, rounds


def clients_of(pool, round):
    return [client for unit, _, _ in pool.trained if unit.round == round for client in unit.clients]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize(
    ("name", "own", "mean"), [("scaffold", "c_i", "c"), ("feddyn", "h_i", "h")]
)
def test_the_mean_of_all_memories_is_the_servers(name, own, mean, options, small):
    """Mean over all N clients, seen or not: it holds only if S is the number of those who came back."""
    small["federation"] |= options | {"rounds": 8}
    prepared = prepare(load_config(small))
    server, pool, _ = here(prepared, ALGORITHMS[name]())
    memories = {}
    for unit, _, ticket in pool.trained:
        memories |= dict(zip(unit.clients, ticket.memories, strict=True))
    total = np.sum([memory[own] for memory in memories.values()], axis=0, dtype=np.float64)
    assert np.abs(total).max() > 0.01
    np.testing.assert_allclose(total / prepared.federation.clients, server.state[mean], atol=2e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_memories_change_only_where_a_client_came_back(options, small):
    """A client is given, bit for bit, the memory that it returned when it last came back."""
    small["federation"] |= options | {"rounds": 8}
    prepared = prepare(load_config(small))
    server, pool, _ = here(prepared, ALGORITHMS["scaffold"]())
    returned, kept = {}, 0
    for unit, given, ticket in pool.trained:
        for client, memory in zip(unit.clients, given, strict=True):
            assert (memory is None) == (client not in returned)
            if memory is not None:
                kept += 1
                np.testing.assert_array_equal(memory["c_i"], returned[client])
        for client, memory in zip(unit.clients, ticket.memories, strict=True):
            returned[client] = memory["c_i"].copy()
    assert kept >= 8
    assert server.memories.keys() == returned.keys()


def test_the_mean_is_over_those_who_came_back(small):
    small["federation"] |= {"sampling": "bernoulli", "client_dropout": 0.4, "rounds": 12}
    prepared = prepare(load_config(small))
    server, pool, metrics = here(prepared, Counts())
    sizes, lost = set(), 0.0
    for round in range(1, 13):
        sampled = server.federation.cohort(round)
        back = survivors(sampled, 0.4, prepared.federation.seed, round)
        assert clients_of(pool, round) == back
        assert metrics[round]["cohort/size"] == len(back)
        assert metrics[round]["cohort/dropped"] == len(sampled) - len(back)
        # float32 [P] each: down to all that were sampled, up from those that came back.
        vector = 4 * len(server.w)
        assert metrics[round]["cost/bytes_down"] == len(sampled) * vector
        assert metrics[round]["cost/bytes_up"] == len(back) * (vector + 4)
        # It is 1 only if the sum was divided by as many as were added.
        assert metrics[round]["server/mean"] == 1
        assert metrics[round]["server/participation"] == pytest.approx(len(back) / 10)
        units = [unit.clients for unit, _, _ in pool.trained if unit.round == round]
        assert [len(unit) for unit in units[:-1]] == [2] * (len(units) - 1)
        sizes.add(len(back))
        lost += len(sampled) - len(back)
    assert len(sizes) > 3
    assert lost > 10


def test_stragglers_take_fewer_steps_of_the_same_batches(small):
    small["federation"] |= {
        "local_epochs": None,
        "local_steps": 6,
        "straggler_prob": 0.5,
        "rounds": 8,
    }
    prepared = prepare(load_config(small))
    _, pool, metrics = here(prepared, ALGORITHMS["fedavg"]())
    engine = pool.client.engine
    steps = [
        [len(engine.stacks.schedule(round, client).sizes) for client in clients_of(pool, round)]
        for round in range(1, 9)
    ]
    for round, taken in enumerate(steps, start=1):
        assert metrics[round]["cost/backward_passes"] == sum(taken)
    assert {step for taken in steps for step in taken} == set(range(1, 7))

    small["federation"]["straggler_prob"] = 0
    whole = a_server(prepare(load_config(small)), ALGORITHMS["fedavg"]()).pool.client.engine
    for client in range(10):
        cut, full = engine.stacks.schedule(1, client), whole.stacks.schedule(1, client)
        assert len(full.sizes) == 6
        np.testing.assert_array_equal(cut.indices, full.indices[: len(cut.indices)])


def test_random_numbers_of_a_method_are_those_of_the_client_not_of_its_unit(small):
    """In units of 1, 2 and 5 clients sums are rounded differently, by a thousandth of the draws at most."""
    small["model"] = {"name": "convolutions:plain"}
    small["algorithm"] = {"name": "noisy:Noisy"}
    ends = []
    for size in (1, 2, 5):
        small["federation"]["clients_per_unit"] = size
        prepared = prepare(load_config(small))
        ends.append(here(prepared, prepared.config.algorithm)[0].w)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=1e-6)
