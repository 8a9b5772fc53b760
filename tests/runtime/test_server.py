"""The server on real client actors: where the work ran changes nothing, and nothing fails in silence."""

import os
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import ray
import torch
from failing import Dies, Explodes, RaisesInRoundTwo, RenamesItsMemory
from local_pool import LocalPool

from rayfl.algorithms import ALGORITHMS
from rayfl.config import load_config
from rayfl.errors import ClientError, DivergedError, RunError
from rayfl.experiment import prepare
from rayfl.runtime.client import Client
from rayfl.runtime.pool import ActorPool
from rayfl.runtime.server import Server
from rayfl.training.flat import Layout


class ReusableClient(Client):
    """A client that can change its experiment: starting a process costs seconds, a test does not."""

    def __init__(self):
        pass

    def become(self, arguments):
        super().__init__(**arguments)

    def pid(self):
        return os.getpid()


def client_arguments(prepared, algorithm, name="test"):
    return {
        "name": name,
        "model": prepared.model,
        "algorithm": algorithm,
        "dataset": prepared.data,
        "partition": prepared.partition,
        "settings": prepared.settings,
        "threads": 1,
        "gpu_fraction": 0,
    }


@pytest.fixture(scope="module")
def actors(ray_session):
    remote = ray.remote(num_cpus=1)(ReusableClient)
    return [remote.remote() for _ in range(3)]


def train(prepared, algorithm, pool, name="test"):
    """The server after all rounds, and the records."""
    w, buffers = (v.numpy() for v in Layout(prepared.model).flatten(prepared.model))
    server = Server(algorithm, name, w, buffers, prepared.federation, pool)
    return server, list(server.run())


def on_actors(prepared, algorithm, actors, name="test"):
    arguments = client_arguments(prepared, algorithm, name)
    ray.get([actor.become.remote(arguments) for actor in actors])
    return train(prepared, algorithm, ActorPool(len(actors), actors.__getitem__), name)


def here(prepared, algorithm, name="test"):
    client = Client(**client_arguments(prepared, algorithm, name))
    return train(prepared, algorithm, LocalPool(client), name)


def same_bits(a, b):
    states = a.state.keys() == b.state.keys() and all(
        torch.equal(a.state[key], b.state[key]) for key in a.state
    )
    return states and torch.equal(a.w, b.w) and torch.equal(a.buffers, b.buffers)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_any_number_of_actors_gives_the_same_bits(name, small, actors):
    small["algorithm"] = {"name": name}
    prepared = prepare(load_config(small))
    reference, records = here(prepared, prepared.config.algorithm)

    for count in (1, 2, 3):
        server, again = on_actors(prepared, prepared.config.algorithm, actors[:count])
        assert same_bits(server, reference)
        assert metrics(again) == metrics(records)
    assert not torch.equal(reference.w, Layout(prepared.model).flatten(prepared.model)[0])


def metrics(records):
    """What is measured, without how long it took; evaluations may come later, not differently."""
    rows = {}
    for record in records:
        kept = {k: v for k, v in record.metrics.items() if not k.startswith("time/")}
        rows.setdefault(record.round, {}).update(kept)
    return rows


def test_a_convolutional_model_with_batch_norm_too(small, actors):
    small["model"] = {"name": "conv_with_batch_norm:build"}
    small["federation"] |= {"rounds": 2}
    prepared = prepare(load_config(small))
    reference, _ = here(prepared, prepared.config.algorithm)
    server, _ = on_actors(prepared, prepared.config.algorithm, actors)

    assert same_bits(server, reference)
    first = Layout(prepared.model).flatten(prepared.model)[1]
    assert len(first) > 0
    assert not torch.equal(server.buffers, first)


def test_memories_follow_the_client_and_start_with_its_first_cohort(small, actors):
    small["algorithm"] = {"name": "scaffold"}
    small["federation"] |= {"rounds": 4}
    prepared = prepare(load_config(small))
    server, _ = on_actors(prepared, prepared.config.algorithm, actors)

    seen = {client for round in range(1, 5) for client in server.cohort(round)}
    assert set(server.memories) == seen
    controls = [ray.get(kept.handle)["c_i"] for kept in server.memories.values()]
    mean = np.sum(controls, axis=0) / prepared.federation.clients
    np.testing.assert_allclose(mean, server.state["c"], atol=1e-6)


def test_cohorts_depend_on_seed_and_round_only(small):
    federation = prepare(load_config(small)).federation

    def cohorts(federation):
        server = Server(ALGORITHMS["fedavg"](), "fedavg", *EMPTY, federation, None)
        return [server.cohort(round) for round in range(1, 20)]

    first = cohorts(federation)
    assert first == cohorts(federation)
    assert first != cohorts(replace(federation, seed=2))
    assert any(a != b for a, b in pairwise(first))
    assert all(cohort == sorted(set(cohort)) and len(cohort) == 5 for cohort in first)


EMPTY = (np.zeros(1, dtype=np.float32), np.zeros(0, dtype=np.float32))


def test_evaluation_overlaps_but_is_of_its_own_round(small, actors):
    small["federation"] |= {"rounds": 4, "eval_every": 1}
    prepared = prepare(load_config(small))
    _, records = on_actors(prepared, prepared.config.algorithm, actors[:2])
    evaluated = {r.round: r.metrics for r in records if "test/accuracy" in r.metrics}
    assert sorted(evaluated) == [1, 2, 3, 4]

    for rounds in (1, 3):  # a run that ends there evaluates the same w
        small["federation"]["rounds"] = rounds
        _, last = here(prepare(load_config(small)), prepared.config.algorithm)
        assert last[-1].metrics == evaluated[rounds]


def test_eval_every_and_the_last_round(small):
    small["federation"] |= {"rounds": 5, "eval_every": 2}
    _, records = here(prepare(load_config(small)), ALGORITHMS["fedavg"]())
    assert [r.round for r in records if "test/accuracy" in r.metrics] == [2, 4, 5]


@pytest.mark.parametrize(
    ("name", "vectors_down", "vectors_up", "passes"),
    [("fedavg", 1, 1, 1), ("fedsam", 1, 1, 2), ("scaffold", 2, 2, 1), ("fednsam", 1, 1, 2)],
)
def test_costs_are_counted(name, vectors_down, vectors_up, passes, small):
    small["federation"] |= {"rounds": 1, "local_epochs": None, "local_steps": 3}
    prepared = prepare(load_config(small))
    server, records = here(prepared, ALGORITHMS[name]())
    vector = 5 * 4 * len(server.w)  # cohort x float32 x P

    assert records[0].metrics["cost/bytes_down"] == vectors_down * vector
    assert records[0].metrics["cost/bytes_up"] == vectors_up * vector
    assert records[0].metrics["cost/backward_passes"] == 5 * 3 * passes


def test_an_exception_in_client_code_ends_the_run_with_its_traceback(small, actors):
    prepared = prepare(load_config(small))
    with pytest.raises(ClientError) as caught:
        on_actors(prepared, RaisesInRoundTwo(), actors[:2], name="mine")

    error = caught.value
    assert error.round == 2
    assert error.algorithm == "mine"
    assert set(error.clients) <= set(range(10))
    assert len(error.clients) == 2
    assert "failing.py" in error.traceback
    assert "in local_step" in error.traceback
    assert str(error).endswith("algorithm 'mine': ZeroDivisionError: momentum of nothing")


def test_a_loss_that_is_not_finite_names_round_clients_and_remedies(small):
    small["federation"]["max_norm"] = None
    message = r"round 1, algorithm 'mine': .* clients \[\d.*\] is not finite; lower federation.lr"
    with pytest.raises(DivergedError, match=message):
        here(prepare(load_config(small)), Explodes(), name="mine")


def test_memory_must_keep_its_names(small):
    with pytest.raises(ClientError, match=r"returned the memory \['c'\], but init_client names"):
        here(prepare(load_config(small)), RenamesItsMemory())


@pytest.mark.parametrize("name", ["fedwmsam", "scaffold"])
def test_killed_actors_change_nothing(name, small, ray_session):
    """kill -9 of an actor every few rounds, and of all at once: the same bits as undisturbed."""
    small["algorithm"] = {"name": name}
    small["federation"] |= {"rounds": 60}
    prepared = prepare(load_config(small))
    reference, _ = here(prepared, prepared.config.algorithm)

    arguments = client_arguments(prepared, prepared.config.algorithm)
    remote = ray.remote(num_cpus=0)(Client)
    pool = ActorPool(2, lambda index: remote.remote(**arguments))
    w, buffers = (v.numpy() for v in Layout(prepared.model).flatten(prepared.model))
    server = Server(prepared.config.algorithm, name, w, buffers, prepared.federation, pool)
    for record in server.run():
        if "train/loss" in record.metrics and record.round in (10, 25, 40):
            victims = pool.actors if record.round == 40 else pool.actors[:1]
            for pid in [ray.get(actor.describe.remote())["pid"] for actor in victims]:
                os.kill(pid, signal.SIGKILL)

    assert pool.lost_units >= 3
    assert same_bits(server, reference)


def test_a_unit_that_kills_its_actors_is_an_error_that_names_round_and_clients(small, ray_session):
    prepared = prepare(load_config(small))
    arguments = client_arguments(prepared, Dies())
    remote = ray.remote(num_cpus=0)(Client)
    pool = ActorPool(1, lambda index: remote.remote(**arguments))
    w, buffers = (v.numpy() for v in Layout(prepared.model).flatten(prepared.model))
    server = Server(Dies(), "mine", w, buffers, prepared.federation, pool)

    with pytest.raises(RunError, match=r"round 1, clients \[.*\]: the client actor died, 4 times"):
        list(server.run())
