"""The server on real client actors: where the work ran changes nothing, and nothing fails in silence."""

import os
import signal
import time
import weakref
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from conftest import each
from convolutions import ENGINES, METHODS_AND_ENGINES
from failing import Dies, EndsOn, Explodes, HangsOnce, RaisesInRoundTwo, RenamesItsMemory
from local_pool import a_server, specs
from reusable import ReusableClient

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.config.schema import load_config
from rayfl.errors import ClientError, DivergedError, RunError
from rayfl.federation.breakdown import Breakdown
from rayfl.federation.client import Client
from rayfl.federation.metrics import EvaluationMetrics, RoundMetrics
from rayfl.federation.pool import LocalPool
from rayfl.federation.server import Server
from rayfl.prepare import prepare
from rayfl.runtime.client import ClientActor
from rayfl.runtime.pool import ActorPool
from rayfl.training.flat import Layout


@pytest.fixture(scope="module")
def actors(ray_session):
    remote = ray.remote(num_cpus=1)(ReusableClient)
    made = [remote.remote() for _ in range(3)]
    yield made
    for actor in made:  # what still refers to one would keep its CPU from the tests that follow
        ray.kill(actor)


def on_actors(prepared, algorithm, actors, name="test"):
    """The server after all rounds, and the metrics."""
    server_spec, client = specs(prepared, algorithm, name)
    ray.get([actor.begin.remote(*client) for actor in actors])
    server = Server(server_spec, ActorPool(len(actors), actors.__getitem__))
    return server, list(server.run())


def here(prepared, algorithm, name="test", pool=LocalPool):
    """The server after all rounds, and the metrics."""
    server = a_server(prepared, algorithm, name, pool)
    return server, list(server.run())


def on_own_actors(prepared, algorithm, count=2, **options):
    """A server with client actors of its own."""
    server, client = specs(prepared, algorithm)
    remote = ray.remote(num_cpus=0)(ClientActor)
    return Server(server, ActorPool(count, lambda index: remote.remote(1, 0.0, *client), **options))


def same_bits(a, b):
    states = a.state.keys() == b.state.keys() and all(
        torch.equal(a.state[key], b.state[key]) for key in a.state
    )
    return states and torch.equal(a.w, b.w) and torch.equal(a.buffers, b.buffers)


def assert_same_on_any_number(prepared, actors, reference, records):
    """1, 2 and 3 actors end where `reference` did, by the same records; what computes their local steps."""
    engines = set()
    for count in (1, 2, 3):
        server, again = on_actors(prepared, prepared.config.algorithm, actors[:count])
        assert same_bits(server, reference)
        assert metrics(again) == metrics(records)
        engines |= {described["engine"].split()[0] for described in server.pool.describe()}
    return engines


@each(name=["fedavg", "fedwmsam"])
def test_any_number_of_actors_gives_the_same_bits(name, small, actors):
    check_any_number_of_actors(name, "BatchedMLP", small, actors)


@pytest.mark.slow
@each(case=METHODS_AND_ENGINES)
def test_any_number_of_actors_gives_the_same_bits_for_every_method(case, small, actors):
    check_any_number_of_actors(*case, small, actors)


def check_any_number_of_actors(name, engine, small, actors):
    prepared = prepare(load_config(small | {"algorithm": {"name": name}}, ENGINES[engine]))
    reference, records = here(prepared, prepared.config.algorithm)

    assert assert_same_on_any_number(prepared, actors, reference, records) == {engine}
    moved = not torch.equal(reference.w, Layout(prepared.model).flatten(prepared.model)[0])
    assert moved or name == "local"


# Adam moves every parameter by about the learning rate, FedMuon every matrix.
LEARNING_RATES = {"local_adamw": 0.005, "fedadamw": 0.005, "fedlada": 0.03, "fedmuon": 0.02}
# Weight 9 of the sharpness: with the radius 0.05 so small a network, at this learning rate, does not learn.
OPTIONS = {"fedwsam": {"rho": 0.01}}


# Of the others, the models that clients keep are what learns: tests/federation/test_personal.py.
GLOBAL = [name for name, method in ALGORITHMS.items() if method.sends == "all" or method.pools_data]


@pytest.mark.slow
@pytest.mark.parametrize("name", GLOBAL)
def test_every_method_learns(name, small):
    """Its defaults on digits, unequal clients: from chance (10 %) to most of the test set in 20 rounds."""
    small["algorithm"] = {"name": name} | OPTIONS.get(name, {})
    small["federation"] |= {"rounds": 20, "lr": LEARNING_RATES.get(name, 0.1)}
    prepared = prepare(load_config(small))
    rows = metrics(here(prepared, prepared.config.algorithm)[1])

    losses = [rows[round]["train/loss"] for round in sorted(rows)]
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    assert rows[20]["test/accuracy"] > 0.6
    assert rows[20]["test/loss"] < 0.6 * rows[1]["test/loss"]


def metrics(records):
    """Metrics by round, without times; evaluations may come later, not differently."""
    rows = {}
    for record in records:
        kept = {k: v for k, v in record.values.items() if not k.startswith("time/")}
        rows.setdefault(record.round, {}).update(kept)
    return rows


@pytest.mark.parametrize(
    "options",
    [
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"sampling": "bernoulli"},
                {"sampling": "weighted"},
                {"client_dropout": 0.4},
                {"straggler_prob": 0.5},
            )
        ),
        {
            "sampling": "bernoulli",
            "client_dropout": 0.4,
            "straggler_prob": 0.5,
            "weighting": "steps",
        },
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_same_bits_whoever_takes_part(options, small, actors):
    small["federation"] |= options | {"rounds": 6}
    prepared = prepare(load_config(small))
    reference, records = here(prepared, prepared.config.algorithm)
    assert_same_on_any_number(prepared, actors, reference, records)


def test_what_is_held_out_is_evaluated_the_same_by_any_number_of_actors(small, actors, monkeypatch):
    monkeypatch.setattr("rayfl.federation.evaluation.EVALUATION_UNIT", 100)  # five of them
    prepared = prepare(load_config(small, ["data.validation=0.3"]))
    reference, records = here(prepared, prepared.config.algorithm)
    assert_same_on_any_number(prepared, actors, reference, records)
    assert {"validation/accuracy", "validation/loss"} < metrics(records)[3].keys()


@pytest.mark.slow
def test_a_stack_of_convolutions_equals_its_clients_whoever_computes_it(small, actors):
    """Five clients of unequal size in stacks of two at most, against one at a time."""
    small["model"] = {"name": "convolutions:plain"}
    small["federation"] |= {"cohort": 5, "clients_per_unit": 3, "rounds": 2}
    small["federation"] |= {"weight_decay": 0.01, "clip_norm": 5.0}
    prepared = prepare(load_config(small))
    alone, _ = here(prepared, prepared.config.algorithm)
    prepared = prepare(load_config(small, ["federation.stack=2"]))
    reference, records = here(prepared, prepared.config.algorithm)
    torch.testing.assert_close(reference.w, alone.w, rtol=1e-4, atol=1e-5)
    assert_same_on_any_number(prepared, actors, reference, records)


def test_accuracies_of_classes_domains_and_clients_are_those_of_the_final_logits(
    small, actors, monkeypatch
):
    """On data with two domains, by plain sums over single predictions; for any number of actors."""
    monkeypatch.setattr("rayfl.federation.evaluation.EVALUATION_UNIT", 100)  # four of them
    prepared = prepare(load_config(small))
    groups = {
        "groups": ("left", "right"),
        "group_train": np.arange(len(prepared.data.y_train)) // 4 % 2,
        "group_test": np.arange(len(prepared.data.y_test)) // 5 % 2,
    }
    data = replace(prepared.data, **groups)
    breakdown = Breakdown.of(data, prepared.partition, per_class=True, per_client=True)
    evaluation = replace(prepared.federation.evaluation, breakdown=breakdown)
    federation = replace(prepared.federation, evaluation=evaluation)
    prepared = replace(prepared, data=data, federation=federation)

    servers = [here(prepared, prepared.config.algorithm)]
    servers += [
        on_actors(prepared, prepared.config.algorithm, actors[:count]) for count in (1, 2, 3)
    ]
    found = [server_records[1][-1].values for server_records in servers]
    assert found == [found[0]] * 4

    Layout(prepared.model).load(prepared.model, servers[0][0].w, servers[0][0].buffers)
    x = (data.x_test.astype(np.float32) / 255 - data.mean) / data.std
    with torch.no_grad():
        logits = prepared.model(torch.from_numpy(x.transpose(0, 3, 1, 2)).float()).numpy()
    right = logits.argmax(1) == data.y_test
    np.testing.assert_array_equal(servers[0][0].final().scores, right)

    def accuracy(chosen):
        return right[chosen].mean()

    expected = {"test/accuracy": right.mean()}
    expected |= {f"test/class/{c}": accuracy(data.y_test == c) for c in range(10)}
    left, right_ = (accuracy(data.group_test == g) for g in (0, 1))
    expected |= {"test/domain/left": left, "test/domain/right": right_}
    expected |= {"test/domain_mean": (left + right_) / 2, "test/domain_worst": min(left, right_)}
    own = [
        np.mean(
            [
                accuracy(
                    (data.y_test == data.y_train[s]) & (data.group_test == data.group_train[s])
                )
                for s in prepared.partition.client(client)
            ]
        )
        for client in range(10)
    ]
    expected |= {"client/accuracy_mean": np.mean(own), "client/accuracy_worst10": min(own)}
    expected |= {f"client/accuracy_p{q}": np.percentile(own, q) for q in (10, 50, 90)}
    assert found[0].keys() == expected.keys() | {"test/loss"}
    for name, value in expected.items():
        assert found[0][name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.slow
def test_a_convolutional_model_with_batch_norm_too(small, actors):
    small["model"] = {"name": "convolutions:with_batch_norm"}
    small["federation"] |= {"rounds": 2}
    prepared = prepare(load_config(small))
    reference, _ = here(prepared, prepared.config.algorithm)
    server, _ = on_actors(prepared, prepared.config.algorithm, actors)

    assert same_bits(server, reference)
    first = Layout(prepared.model).flatten(prepared.model)[1]
    assert len(first) > 0
    assert not torch.equal(server.buffers, first)


def test_memories_follow_the_client_and_start_with_its_first_cohort(small):
    small["algorithm"] = {"name": "scaffold"}
    small["federation"] |= {"rounds": 4}
    prepared = prepare(load_config(small))
    server, _ = here(prepared, prepared.config.algorithm)

    seen = {client for round in range(1, 5) for client in server.federation.cohort(round)}
    assert set(server.memories) == seen
    controls = [server.pool.fetch(kept.handle)["c_i"] for kept in server.memories.values()]
    mean = np.sum(controls, axis=0) / prepared.federation.clients
    np.testing.assert_allclose(mean, server.state["c"], atol=1e-6)


def test_cohorts_depend_on_seed_and_round_only(small):
    federation = prepare(load_config(small)).federation

    def cohorts(federation):
        return [federation.cohort(round) for round in range(1, 20)]

    first = cohorts(federation)
    assert first == cohorts(federation)
    assert first != cohorts(replace(federation, seed=2))
    assert any(a != b for a, b in pairwise(first))
    assert all(cohort == sorted(set(cohort)) and len(cohort) == 5 for cohort in first)


# FedACG starts its clients beside w.
@pytest.mark.parametrize("name", [pytest.param("fedavg", marks=pytest.mark.slow), "fedacg"])
def test_evaluation_overlaps_but_is_of_its_own_round(name, small, actors):
    small["algorithm"] = {"name": name}
    small["federation"] |= {"rounds": 4, "eval_every": 1}
    prepared = prepare(load_config(small))
    _, records = on_actors(prepared, prepared.config.algorithm, actors[:2])
    evaluated = {r.round: r.values for r in records if isinstance(r, EvaluationMetrics)}
    assert sorted(evaluated) == [1, 2, 3, 4]

    for rounds in (1, 3):  # a run that ends there evaluates the same w
        small["federation"]["rounds"] = rounds
        _, last = here(prepare(load_config(small)), prepared.config.algorithm)
        assert last[-1].values == evaluated[rounds]


def test_one_broadcast_a_round_for_training_and_for_the_evaluation_behind_it(small):
    prepared, calls = prepare(load_config(small)), []

    class Noting(LocalPool):
        def put(self, broadcast):
            calls.append("put")
            return super().put(broadcast)

        def train(self, *arguments):
            calls.append("train")
            return super().train(*arguments)

        def evaluate(self, *arguments):
            calls.append("evaluate")
            return super().evaluate(*arguments)

    algorithm = ALGORITHMS["fedavg"]()
    here(prepared, algorithm, pool=Noting)
    units = ["put", "train"]
    assert calls == [*units, *units, "evaluate", *units, "evaluate", "put", "evaluate"]


def test_what_a_unit_brought_back_is_let_go_once_it_is_added(small):
    """In the object store a cohort's updates would otherwise lie side by side until the round ends.

    There each result is one object, which lives as long as any of its arrays.
    """
    small["federation"]["clients_per_unit"] = 1
    prepared, brought = prepare(load_config(small)), []

    class Watching(Client):
        def train(self, unit, broadcast, memories):
            assert sum(array() is not None for array in brought) <= 5  # those of one unit
            result, new = super().train(unit, broadcast, memories)
            arrays = [*result.sums.values(), result.losses, result.drifts]
            brought.extend(map(weakref.ref, arrays))
            return result, new

    server, client = specs(prepared, ALGORITHMS["scaffold"]())
    for _ in Server(server, LocalPool(Watching(client))).run():
        assert not any(array() is not None for array in brought)
    assert len(brought) == 15 * 5


@pytest.mark.slow
def test_the_overhead_is_the_round_beside_its_busiest_actor(small, actors):
    small["federation"]["eval_every"] = 3
    prepared = prepare(load_config(small))
    for count in (1, 2):
        _, records = on_actors(prepared, prepared.config.algorithm, actors[:count])
        for times in (r.values for r in records if "time/round_s" in r.values):
            busiest = times["time/round_s"] - times["time/overhead_s"]
            if count == 1:
                assert busiest == pytest.approx(times["time/client_s"])
            else:
                assert times["time/client_s"] / 2 <= busiest * 1.0001
                assert busiest <= times["time/client_s"] * 1.0001


def test_eval_every_and_the_last_round(small):
    small["federation"] |= {"rounds": 5, "eval_every": 2}
    _, records = here(prepare(load_config(small)), ALGORITHMS["fedavg"]())
    assert [r.round for r in records if isinstance(r, EvaluationMetrics)] == [2, 4, 5]


@pytest.mark.parametrize(
    ("name", "vectors_down", "vectors_up", "passes"),
    [
        ("fedavg", 1, 1, 1),
        ("fedsam", 1, 1, 2),
        ("scaffold", 2, 2, 1),
        ("fednsam", 1, 1, 2),
        ("fedgloss", 1, 1, 2),
        ("fedgmt", 2, 1, 1),
        ("fedwsam", 1, 1, 2),
        ("igfl", 2, 2, 1),
        ("local_adamw", 1, 1, 1),
        ("fedlada", 3, 2, 1),
        ("fedmuon", 3, 2, 1),
        ("moon", 1, 1, 1),
        ("asyncsam", 1, 1, 2),
    ],
)
def test_costs_are_counted(name, vectors_down, vectors_up, passes, small):
    small["federation"] |= {"rounds": 1, "local_epochs": None, "local_steps": 3}
    prepared = prepare(load_config(small))
    server, records = here(prepared, ALGORITHMS[name]())
    vector = 5 * 4 * len(server.w)  # cohort x float32 x P

    assert records[0].values["cost/bytes_down"] == vectors_down * vector
    assert records[0].values["cost/bytes_up"] == vectors_up * vector
    assert records[0].values["cost/backward_passes"] == 5 * 3 * passes


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
    small["federation"]["clip_norm"] = None
    message = r"round 1, algorithm 'mine': .* clients \[\d.*\] is not finite; lower federation.lr"
    with pytest.raises(DivergedError, match=message):
        here(prepare(load_config(small)), Explodes(), name="mine")


NAN, INF = float("nan"), float("inf")
AGGREGATED = r"what the server aggregated \({}\) is not finite; lower federation\.lr \(now 0\.1\)"


@pytest.mark.parametrize("round", [1, 3])  # the last one too, which no client sees
@pytest.mark.parametrize(
    ("where", "value", "what"),
    [
        ("m", NAN, AGGREGATED.format("server state 'm'")),
        ("m", -INF, AGGREGATED.format("server state 'm'")),
        ("w", INF, AGGREGATED.format("w")),
        ("w", 1e38, r"(the test loss|the loss or the update of clients \[.*\]) is not finite; "),
    ],
)
def test_what_the_server_ends_a_round_on_must_be_finite(where, value, what, round, small):
    prepared, records = prepare(load_config(small)), []
    algorithm = EndsOn(round=round, value=str(value), where=where)
    server = a_server(prepared, algorithm, "mine")
    with pytest.raises(DivergedError, match=rf"^round \d, algorithm 'mine': {what}") as caught:
        records += server.run()
    assert "\n" not in str(caught.value)
    # Finite parameters that no float32 can compute with show in their evaluation, or in the next round.
    assert f"round {round}" in str(caught.value) or (round, value) == (1, 1e38)
    assert all(np.isfinite(list(r.values.values())).all() for r in records)


@pytest.mark.parametrize("value", [1e38, -3.0])
def test_large_numbers_are_no_divergence(value, small):
    """Their sum overflows float32, none of them does."""
    server, records = here(prepare(load_config(small)), EndsOn(value=str(value)), name="mine")
    assert server.state["m"].numel() * 1e38 > 3.4e38
    assert torch.equal(server.state["m"], torch.full_like(server.w, value))
    assert len(records) == 6


@dataclass(frozen=True, kw_only=True)
class Least(Algorithm):
    """A running minimum, infinite at first; another value in the end."""

    last: float = 1.0

    def init_server(self, w):
        return {"m": torch.full((2,), torch.inf)}

    def server_step(self, w, server, mean, ctx):
        return w + mean["delta"], {"m": torch.tensor([self.last, torch.inf])}


def test_a_server_state_may_keep_the_infinity_it_began_with(small):
    prepared = prepare(load_config(small))
    server, records = here(prepared, Least(), name="mine")
    assert server.state["m"].tolist() == [1.0, INF]
    assert len(records) == 6
    with pytest.raises(DivergedError, match="^round 1, .*" + AGGREGATED.format("server state 'm'")):
        here(prepared, Least(last=NAN), name="mine")


def test_buffers_must_be_finite_too(small):
    prepared, algorithm = prepare(load_config(small)), ALGORITHMS["fedavg"]()

    class Overflowing(LocalPool):
        def total(self, training):
            return super().total(training) | {"buffers": torch.full((3,), np.inf)}

    with pytest.raises(DivergedError, match=r"^round 1, .*aggregated \(buffers\) is not finite"):
        here(prepared, algorithm, pool=Overflowing)


def test_memory_must_keep_its_names(small):
    with pytest.raises(ClientError, match=r"returned the memory \['c'\], but init_client names"):
        here(prepare(load_config(small)), RenamesItsMemory())


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param("scaffold", "BatchedMLP", marks=pytest.mark.slow),
        pytest.param("fedwmsam", "BatchedMLP", marks=pytest.mark.long),
        pytest.param("fedwmsam", "PerClientGradient", marks=pytest.mark.slow),
        pytest.param("fedwmsam", "VmapGradient", marks=pytest.mark.long),
    ],
)
def test_killed_actors_change_nothing(name, engine, small, ray_session):
    """kill -9 of an actor every few rounds, and of all at once: the same bits as undisturbed."""
    small["algorithm"] = {"name": name}
    small["federation"] |= {"rounds": 24}
    prepared = prepare(load_config(small, ENGINES[engine]))
    reference, _ = here(prepared, prepared.config.algorithm)

    server = on_own_actors(prepared, prepared.config.algorithm, 2)
    pool = server.pool
    for record in server.run():
        if isinstance(record, RoundMetrics) and record.round in (5, 10, 15):
            victims = pool.actors if record.round == 15 else pool.actors[:1]
            for pid in [ray.get(actor.describe.remote())["pid"] for actor in victims]:
                os.kill(pid, signal.SIGKILL)

    assert pool.lost_units >= 3
    assert same_bits(server, reference)


@pytest.mark.slow
def test_a_client_that_hangs_is_killed_and_runs_again(small, tmp_path, ray_session):
    prepared = prepare(load_config(small))
    reference, _ = here(prepared, ALGORITHMS["fedavg"]())
    hangs = HangsOnce(marker=str(tmp_path / "hung"))
    server = on_own_actors(prepared, hangs, 2, time_limit=20)
    pool = server.pool
    list(server.run())

    assert Path(hangs.marker).exists()
    assert pool.lost_units >= 1
    assert torch.equal(server.w, reference.w)


@pytest.mark.slow
def test_the_pool_grows_while_another_actor_fits(small, ray_session):
    small["federation"]["rounds"] = 300
    prepared = prepare(load_config(small))
    reference, _ = here(prepared, prepared.config.algorithm)
    server = on_own_actors(prepared, prepared.config.algorithm, 1, another_fits=lambda n: n < 3)
    pool = server.pool
    for _ in server.run():
        pass
    while len(pool.describe()) < 3:  # they are slow to start, and the rounds may be over
        time.sleep(1)
        pool.poll()

    assert len(pool.actors) == 3
    assert same_bits(server, reference)


@pytest.mark.slow
def test_an_actor_that_cannot_start_is_an_error(small, ray_session):
    prepared = prepare(load_config(small))
    _, client = specs(prepared, ALGORITHMS["fedavg"]())
    remote = ray.remote(num_cpus=0)(ClientActor)
    pool = ActorPool(1, lambda index: remote.remote(1, 0.0, *client._replace(model=None)))
    with pytest.raises(RunError, match=r"(?s)a client actor could not start: .*TypeError"):
        pool.describe()


@pytest.mark.slow
def test_a_unit_that_kills_its_actors_is_an_error_that_names_round_and_clients(small, ray_session):
    prepared = prepare(load_config(small))
    server = on_own_actors(prepared, Dies(), 1)

    with pytest.raises(RunError, match=r"round 1, clients \[.*\]: the client actor died, 4 times"):
        list(server.run())


def test_the_longest_units_go_first_and_change_nothing(small, actors):
    small["partition"] = {"name": "quantity"}
    small["federation"] |= {"clients_per_unit": 1, "rounds": 2}
    prepared = prepare(load_config(small))
    algorithm = prepared.config.algorithm
    server, _ = on_actors(prepared, algorithm, actors[:1])
    taken = ray.get(actors[0].taken.remote())
    sizes = [prepared.partition.sizes[unit.clients[0]] for unit in taken]
    assert len(set(sizes)) > 3
    for first in range(0, len(sizes), 5):
        assert sizes[first : first + 5] == sorted(sizes[first : first + 5], reverse=True)
    even = replace(prepared, federation=replace(prepared.federation, sizes=np.ones(10, np.int64)))
    assert same_bits(server, here(even, algorithm)[0])
