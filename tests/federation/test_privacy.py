"""Private rounds: what the server gets to know of a cohort, whatever trains where."""

import sys

import numpy as np
import pytest
import ray
from conftest import each, small_config
from local_pool import a_server
from reusable import ReusableClient

from rayfl import run
from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.federation.privacy import epsilons
from rayfl.federation.server import Server
from rayfl.federation.session import Session
from rayfl.prepare import prepare
from rayfl.runtime.pool import ActorPool
from rayfl.training.personal import evaluate_personal
from rayfl.training.units import Broadcast, Personal

PRIVATE = {"clip": 0.5, "noise": 0.8}
HUGE = {"clip": 1e30, "noise": 0.0}


def experiment(algorithm="fedavg", privacy=None, **federation):
    config = small_config()
    config["algorithm"] = {"name": algorithm}
    config["federation"] |= {"local_epochs": None, "local_steps": 2} | federation
    return prepare(load_config(config | ({} if privacy is None else {"privacy": privacy})))


def trained(prepared, algorithm=None):
    """The server after all rounds, and the metrics of the rounds."""
    server = a_server(prepared, algorithm)
    return server, [m.values for m in server.run() if "train/loss" in m.values]


class Watches(Algorithm):
    """Keeps the mean that the server gets, and the context."""

    def server_step(self, w, server, mean, ctx):
        SEEN.append((mean["delta"].clone(), ctx))
        return super().server_step(w, server, mean, ctx)


SEEN = []


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


@pytest.mark.parametrize("algorithm", ["fedavg", "fedwmsam", "scaffold"])
def test_a_bound_that_nothing_meets_changes_no_bit(algorithm):
    plain, _ = trained(experiment(algorithm))
    bounded, metrics = trained(experiment(algorithm, HUGE))
    assert bounded.w.equal(plain.w)
    assert all(bounded.state[name].equal(value) for name, value in plain.state.items())
    assert [m["privacy/clipped"] for m in metrics] == [0, 0, 0]
    assert "privacy/epsilon" not in metrics[-1]  # it is infinite


def test_no_client_moves_the_mean_by_more_than_its_share():
    _, metrics = trained(experiment(privacy={"clip": 1e-3, "noise": 0.0}), Watches())
    assert all(mean.norm() <= 1e-3 for mean, _ in SEEN)
    assert [m["privacy/clipped"] for m in metrics] == [1, 1, 1]
    one = experiment(privacy={"clip": 1e-3, "noise": 0.0}, rounds=1)
    one.federation.__dict__["cohort"] = lambda round: [3]
    trained(one, Watches())
    assert SEEN[-1][0].norm() == pytest.approx(1e-3 / 5, rel=1e-5)  # divided by 5 all the same


def test_the_mean_is_over_the_expected_cohort():
    """So neither the number of clients nor their steps tell who was drawn."""
    prepared = experiment(
        privacy=HUGE, sampling="bernoulli", rounds=6, local_epochs=1, local_steps=None
    )
    trained(prepared, Watches())
    sizes = prepared.partition.sizes
    steps = np.ceil(sizes / 16).mean()
    assert len({len(prepared.federation.cohort(r)) for r in range(1, 7)}) > 1
    assert {ctx.participation for _, ctx in SEEN} == {0.5}
    assert [ctx.steps for _, ctx in SEEN] == [pytest.approx(steps)] * 6


def test_a_round_that_draws_nobody_is_noise_alone():
    prepared = experiment(
        privacy={"clip": 1e-3, "noise": 0.0}, sampling="bernoulli", cohort=0.05, rounds=20
    )
    trained(prepared, Watches())
    empty = [prepared.federation.is_empty(round) for round in range(1, 21)]
    assert 5 < sum(empty) < 20
    assert [not mean.any() for mean, _ in SEEN] == empty


@pytest.mark.parametrize("at", ["server", "clients"])
def test_the_noise_reaches_the_mean(at):
    private = {"clip": 1e-3, "noise": 1000.0, "at": at}
    _, metrics = trained(experiment(privacy=private), Watches())
    for mean, _ in SEEN:  # the updates are at most 1e-3 together
        assert mean.std() == pytest.approx(1.0 / 5, rel=0.1)
    # Noise of the clients leaves no upload sparse, that of the server is added when all have been sent.
    assert metrics[0]["cost/bytes_up"] == 5 * 4 * len(SEEN[0][0])


@pytest.mark.slow
@each(name=[name for name, method in ALGORITHMS.items() if method.sends == "all"])
def test_every_method_trains_with_finite_numbers(name):
    private = {"clip": 1.0, "noise": 0.3}
    server, metrics = trained(experiment(name, private, lr=0.01, local_steps=1, rounds=4))
    assert server.w.isfinite().all()
    assert 0 <= metrics[-1]["privacy/clipped"] <= 1


@pytest.mark.parametrize("at", ["server", "clients"])
def test_noise_does_not_depend_on_the_units(at):
    """Up to the order in which clients are added up."""
    ends = [
        trained(experiment(privacy=PRIVATE | {"at": at}, clients_per_unit=unit))[0].w
        for unit in (1, 2, 5)
    ]
    assert (ends[0] - ends[1]).abs().max() < 1e-5
    assert (ends[0] - ends[2]).abs().max() < 1e-5


@pytest.mark.slow
def test_any_number_of_actors_has_the_same_bits(ray_session):
    prepared = experiment("scaffold", PRIVATE | {"at": "clients"})
    expected, _ = trained(prepared)
    server_spec, client = prepared.specs()
    remote = ray.remote(num_cpus=1)(ReusableClient)
    actors = [remote.remote() for _ in range(2)]
    try:
        for count in (1, 2):
            ray.get([actor.begin.remote(*client) for actor in actors])
            server = Server(server_spec, ActorPool(count, actors.__getitem__))
            list(server.run())
            assert server.w.equal(expected.w)
    finally:
        for actor in actors:
            ray.kill(actor)


def test_a_resumed_run_is_one_that_never_stopped(tmp_path):
    prepared = experiment("scaffold", PRIVATE, rounds=4)
    whole = Session(a_server(prepared))
    list(whole.run())
    stopped = prepared.checkpoint_writer(str(tmp_path))
    stopped.prepare()
    list(Session(a_server(prepared), stopped).rounds(until=2))
    server = a_server(prepared)
    resumed = Session(server, prepared.checkpoint_writer(str(tmp_path)))
    list(resumed.run())
    assert (server.final().w == whole.final().w).all()
    for name in ("privacy/epsilon", "privacy/clipped"):
        one, other = ([s.history.rows[r][name] for r in range(1, 5)] for s in (whole, resumed))
        assert one == other


def test_epsilon_is_a_metric_of_each_round_and_of_the_run(small):
    small |= {"privacy": PRIVATE | {"delta": 0.02}, "algorithm": {"name": "fedsam"}}
    small["federation"]["sampling"] = "bernoulli"
    result = run(load_config(small), local=True)
    expected = epsilons(0.8, "bernoulli", 0.5, 5, 10, 3, 0.02)
    assert tuple(result.history["privacy/epsilon"]) == expected
    assert result.summary["epsilon"] == expected[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "federation.weighting=samples",
            r"^federation\.weighting = 'samples': must be 'uniform' under ",
        ),
        (
            "federation.sampling=weighted",
            r"^federation\.sampling = 'weighted': must be 'uniform' or 'bern",
        ),
        (
            "federation.client_dropout=0.1",
            r"^federation\.client_dropout = 0\.1: must be 0\.0 under .*cohort",
        ),
        ("privacy.delta=1", r"^privacy\.delta = 1: must be .* less than 1"),
        ("privacy.noise=-1", r"^privacy\.noise = -1: must be a number of at least 0 "),
        ("privacy.noise=1e-50", r"^privacy\.noise = 1e-50: must be 0, or from 1e-45"),
        ("privacy.clip=0", r"^privacy\.clip = 0: must be a number greater than 0"),
        ("privacy.clipp=1", r"^privacy\.clipp = 1: unknown key \(did you mean 'privacy\.clip'\?\)"),
    ],
)
def test_what_has_no_bound_is_one_line(small, change, words):
    with pytest.raises(ConfigError, match=words):
        load_config(small | {"privacy": PRIVATE}, [change])


def test_shares_of_the_noise_need_a_known_cohort(small):
    small["federation"]["sampling"] = "bernoulli"
    with pytest.raises(
        ConfigError, match=r"^privacy\.at = 'clients': .* federation\.sampling=uniform"
    ):
        load_config(small | {"privacy": PRIVATE | {"at": "clients"}})


def test_statistics_of_batches_would_travel_as_they_are(small):
    small |= {"privacy": PRIVATE, "model": {"name": "resnet18", "norm": "batch", "stem": "cifar"}}
    with pytest.raises(ConfigError, match=r"^model\.name = 'resnet18': .* model\.norm=group$"):
        prepare(load_config(small))


def test_epsilon_without_its_package_is_one_line(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    small |= {"privacy": {"clip": 1.0, "noise": 0.77}}
    with pytest.raises(
        ConfigError, match=r"^privacy\.noise = 0\.77: .* 'rayfl\[privacy\]'` installs"
    ):
        prepare(load_config(small))
    prepare(load_config(small, ["privacy.noise=0"]))


def test_it_is_part_of_the_identity_where_it_is_given(small):
    without = load_config(small)
    assert load_config(small, ["privacy=null"]).hash == without.hash
    hashes = {
        load_config(small | {"privacy": PRIVATE}, change).hash
        for change in ([], ["privacy.noise=2"], ["privacy.at=clients"], ["privacy.delta=0.01"])
    }
    assert len(hashes | {without.hash}) == 5


def test_what_only_the_experimenter_sees_is_neither_clipped_nor_noisy(small):
    """Clients' own models after some steps are those of a run without privacy, from the same global model."""
    found = []
    for privacy in ({}, {"privacy": {"clip": 1e-6, "noise": 0.0}}):
        ready = prepare(load_config(small | {"algorithm": {"name": "fedavg"}} | privacy))
        engine, start = a_server(ready).pool.client.engine, ready.specs()[0].w
        own = np.flatnonzero(
            np.isin(ready.data.y_test, ready.data.y_train[ready.partition.client(0)])
        )
        weights = np.full(len(own), 1 / len(own))
        asked = Personal(1, 0, 0.1, 20, own, weights)
        point = Broadcast(start, {}, np.zeros(0, np.float32))
        found.append(evaluate_personal(engine, asked, point, None))
    assert found[0] == found[1]
    assert found[0].after > found[0].before + 0.2
