"""Clients' own models: their evaluation, the methods that keep some, and the ends without a federation."""

import numpy as np
import pytest
import torch
from conftest import each
from torch.nn import functional as F

import rayfl
from rayfl.errors import ConfigError, DivergedError
from rayfl.federation.breakdown import Breakdown
from rayfl.prepare import prepare
from rayfl.training.flat import Layout

EXACT = {"samples": 10_000, "clients": 10_000}


def run(config, *overrides):
    return rayfl.run(rayfl.load_config(config, overrides), local=True)


def with_personal(small, method="fedavg", **asked):
    return small | {
        "algorithm": {"name": method},
        "evaluation": {"personalised": EXACT | asked},
    }


def own_accuracy(data, partition, client, correct):
    """Sum over classes of the client's share times the accuracy on the class, by hand."""
    labels = data.y_train[partition.client(client)]
    known = [c for c in np.unique(labels) if (data.y_test == c).any()]
    shares = np.array([(labels == c).mean() for c in known])
    accuracies = [correct[data.y_test == c].mean() for c in known]
    return float(shares / shares.sum() @ accuracies)


def test_before_and_after_some_steps_by_plain_pytorch(small):
    """Full batches, so that k steps are k steps of gradient descent on all that the client has."""
    config = with_personal(small, steps=3)
    config["federation"] |= {"batch_size": 10_000, "clip_norm": None, "weight_decay": 0.01}
    result, ready = run(config), prepare(rayfl.load_config(config))
    data, partition, model = ready.data, ready.partition, ready.model

    def pixels(x):
        seen = (x / np.float32(255) - data.mean) / data.std
        return torch.tensor(seen.astype(np.float32)).movedim(-1, 1)

    x_test = pixels(data.x_test)
    for client in range(10):
        model.load_state_dict(result.state_dict)
        before = (model(x_test).argmax(1).numpy() == data.y_test).astype(float)
        x, y = (part[partition.client(client)] for part in (data.x_train, data.y_train))
        descent = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
        for _ in range(3):
            descent.zero_grad()
            F.cross_entropy(model(pixels(x)), torch.tensor(y)).backward()
            descent.step()
        after = (model(x_test).argmax(1).numpy() == data.y_test).astype(float)
        row = result.clients.loc[client]
        for column, correct in (("personal_before", before), ("personal_accuracy", after)):
            expected = own_accuracy(data, partition, client, correct)
            assert row[column] == pytest.approx(expected, abs=0.006)  # one sample by rounding
        assert row["personal_before"] == pytest.approx(row["accuracy"], abs=1e-12)
    last = result.history.iloc[-1]
    assert last["personal/accuracy_mean"] == pytest.approx(result.clients.personal_accuracy.mean())
    assert last["personal/before_accuracy_mean"] == pytest.approx(last["client/accuracy_mean"])
    assert last["personal/accuracy_mean"] > last["personal/before_accuracy_mean"]
    assert result.history["personal/accuracy_mean"].notna().sum() == 1


def test_it_changes_no_result_and_no_hash(small):
    plain = run(small | {"algorithm": {"name": "fedavg"}})
    config = with_personal(small, every=1)
    measured = run(config)
    assert measured.model_sha256 == plain.model_sha256
    assert measured.history["personal/accuracy_mean"].notna().all()
    assert rayfl.load_config(config).hash == rayfl.load_config(with_personal(small)).hash


def test_drawn_samples_and_clients_come_near_the_exact_numbers(small):
    small["federation"]["rounds"] = 10
    exact = run(with_personal(small, steps=1)).clients
    few = run(with_personal(small, steps=1, samples=300, clients=4)).clients
    chosen = few.personal_accuracy.notna()
    assert chosen.sum() == 4
    apart = (few.personal_accuracy - exact.personal_accuracy)[chosen].abs()
    assert 0 < apart.max() < 0.12  # a standard deviation is at most 0.03


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@each(method=["fedavg", "ditto"])
def test_actors_and_resumed_runs_give_the_same_numbers(method, tmp_path):
    from conftest import small_config

    config = with_personal(small_config(), method, steps=2, every=2)
    config["checkpoint"] = {"every": 2, "keep_last": 2, "dir": str(tmp_path / method)}
    config["ray"] = {"address": "auto"}
    here = run(config)
    actors = rayfl.run(rayfl.load_config(config, ["resources.num_actors=2"]))
    assert here.clients.equals(actors.clients)
    (tmp_path / method).rename(tmp_path / f"{method}-first")
    config["checkpoint"]["dir"] = str(tmp_path / f"{method}-first")
    for manifest in (tmp_path / f"{method}-first").rglob("checkpoint-*3.json"):
        manifest.unlink()
    again = rayfl.run(rayfl.load_config(config), local=True, resume="latest")
    assert again.clients.equals(here.clients)
    assert again.model_sha256 == here.model_sha256


@pytest.mark.slow
@each(method=["local", "ditto", "fedper", "fedrep"])
def test_own_models_are_better_than_a_global_one_where_clients_differ(method):
    """Two classes a client: a client's own model need not tell the others apart."""
    from conftest import small_config

    small = small_config()
    small["partition"] = {"name": "pathological", "classes_per_client": 2}
    small["federation"] |= {"rounds": 12, "cohort": 10}
    result = run(small | {"algorithm": {"name": method}})
    last = result.history.iloc[-1]
    assert last["personal/accuracy_mean"] > max(0.85, last["personal/before_accuracy_mean"])
    if method == "local":
        assert last["test/accuracy"] == result.history["test/accuracy"].iloc[0]


def test_local_is_each_client_alone(small):
    """A federation of one client, round for round, where no client is ever beside another."""
    small["federation"] |= {"cohort": 10, "clients_per_unit": 1}
    config = small | {
        "algorithm": {"name": "local"},
        "evaluation": {"personalised": EXACT | {"steps": 0}},
    }
    result, ready = run(config), prepare(rayfl.load_config(config))
    from local_pool import a_server

    server = a_server(ready)
    list(server.run())
    own = server.snapshot().memories[3].fetch()["own"]
    layout, start = Layout(ready.model), ready.specs()[0].w
    assert not np.array_equal(own, start)
    alone = a_server(prepare(rayfl.load_config(config, ["algorithm.name=fedavg"])))
    unit_of = alone._unit
    x = start
    from rayfl.training.units import Broadcast

    for round in (1, 2, 3):
        point = Broadcast(x, {}, np.zeros(0, np.float32))
        trained, _ = alone.pool.client.train(unit_of(round, (3,), 0.1), point, [None])
        x = x + trained.sums["delta"]
    np.testing.assert_allclose(own, x, rtol=1e-5, atol=1e-6)
    assert layout.size == len(own)
    assert result.clients.personal_accuracy.notna().all()


def test_centralised_is_sgd_on_all_data_with_the_budget_of_the_federation(small):
    small["data"] = {"name": "digits", "validation": 0.1}
    small["federation"] |= {"straggler_prob": 0.5, "client_dropout": 0.2}
    federated = run(small | {"algorithm": {"name": "fedavg"}}, "federation.straggler_prob=0")
    config = rayfl.load_config(small | {"algorithm": {"name": "centralised"}})
    ready = prepare(config)
    assert ready.federation.clients == ready.federation.cohort_size == 1
    assert sorted(ready.partition.client(0)) == sorted(ready.holders.indices)
    result = rayfl.run(config, local=True)
    passes = result.history["cost/backward_passes"]
    assert passes.nunique() == 1
    assert passes.sum() == pytest.approx(federated.summary["backward_passes"] / 0.8, rel=0.25)
    assert len(result.clients) == 10
    assert result.summary["accuracy_final"] > federated.summary["accuracy_final"]
    assert "validation/accuracy" in result.history


@each(
    case={
        "no such head": (
            {"algorithm": {"name": "fedper", "head": "nothing"}},
            "algorithm.name = 'fedper': a head is some of .* none of their names begin with 'nothing'",
        ),
        "all of it": (
            {"algorithm": {"name": "fedrep"}, "model": {"name": "mlp", "hidden": []}},
            "all of their names begin with",
        ),
    }
)
def test_what_cannot_be_is_one_line(case):
    from conftest import small_config

    change, message = case
    with pytest.raises(ConfigError, match=message):
        run(with_personal(small_config()) | change)


def test_the_test_samples_of_a_client_are_those_of_its_classes(small):
    ready = prepare(rayfl.load_config(small))
    breakdown = Breakdown.of(ready.data, ready.partition, False, True)
    correct = np.random.default_rng(0).random(len(ready.data.y_test)) < 0.5
    for client in range(10):
        samples, counts = breakdown.of_client(client)
        assert counts.sum() == pytest.approx(1)
        expected = breakdown.clients(correct)[client]
        assert correct[samples] @ counts == pytest.approx(expected, abs=1e-12)
        held = set(ready.data.y_train[ready.partition.client(client)])
        assert set(ready.data.y_test[samples]) == held


def test_own_models_that_diverge_end_the_run(small):
    """The global model of Ditto does not: NaN must not be taken for an accuracy."""
    small["federation"] |= {"rounds": 30}
    with pytest.raises(DivergedError, match="the memory of clients"):
        run(small | {"algorithm": {"name": "ditto", "lam": 400.0}})


@each(method={"fedper": 1464 - 170, "fedrep": 1464 - 170, "local": 0, "centralised": 0}.items())
def test_bytes_are_those_that_travel(method):
    """64 x 16 + 16 + 16 x 10 + 10 parameters, of which the last layer stays with the clients."""
    from conftest import small_config

    name, sent = method
    P = 64 * 16 + 16 + 16 * 10 + 10
    history = run(small_config() | {"algorithm": {"name": name}}).history
    assert (history["cost/bytes_up"] == 5 * 4 * (P - 170 if sent else 0)).all()
    assert (history["cost/bytes_down"] == 5 * 4 * (P if sent else 0)).all()


def test_fedrep_of_one_step_trains_its_body(small):
    small["federation"] |= {"local_epochs": None, "local_steps": 1}
    one, two = (
        run(small | {"algorithm": {"name": "fedrep"}}, f"federation.rounds={r}").model_sha256
        for r in (1, 2)
    )
    assert one != two
