"""Held-out samples: nobody trains on them, and their accuracy is what a hand computes."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from local_pool import a_server

from rayfl import load_config, run
from rayfl.data.datasets import Dataset, Source, from_arrays
from rayfl.data.federated import federate
from rayfl.data.heterogeneity import Heterogeneity
from rayfl.data.partition import Partition
from rayfl.data.schemes import Dirichlet
from rayfl.data.sources import Digits
from rayfl.errors import ConfigError, DivergedError
from rayfl.federation.client import Client
from rayfl.federation.evaluation import OF_AVERAGE, OF_MODEL, Evaluations
from rayfl.federation.metrics import EvaluationMetrics
from rayfl.federation.pool import LocalPool
from rayfl.federation.session import Session
from rayfl.prepare import prepare
from rayfl.training.flat import Layout
from rayfl.training.units import Broadcast

HELD_OUT = ["data.validation=0.2"]


def evaluations(server):
    return [m for m in server.run() if isinstance(m, EvaluationMetrics)]


def of_numpy(server, prepared, x, y):
    """Accuracy and loss of a network of two layers on these images, in float64."""
    Layout(prepared.model).load(prepared.model, server.w, server.buffers)
    first, b1, second, b2 = (p.detach().double().numpy() for p in prepared.model.parameters())
    flat = ((x / 255 - prepared.data.mean) / prepared.data.std).transpose(0, 3, 1, 2)
    hidden = np.maximum(flat.reshape(len(x), -1) @ first.T + b1, 0)
    logits = hidden @ second.T + b2
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return (logits.argmax(1) == y).mean(), -log_p[np.arange(len(y)), y].mean()


def test_accuracy_and_loss_are_those_of_numpy(small, monkeypatch):
    monkeypatch.setattr("rayfl.federation.evaluation.EVALUATION_UNIT", 100)  # three of them
    prepared = prepare(load_config(small, HELD_OUT))
    assert 200 < len(prepared.partition.validation) < 300
    server = a_server(prepared)
    found = evaluations(server)
    assert [m.round for m in found] == [1, 2, 3]
    held_out, data = prepared.partition.validation, prepared.data
    for split, x, y in (
        ("validation", data.x_train[held_out], data.y_train[held_out]),
        ("test", data.x_test, data.y_test),
    ):
        accuracy, loss = of_numpy(server, prepared, x, y)
        assert found[-1].values[f"{split}/accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert found[-1].values[f"{split}/loss"] == pytest.approx(loss, rel=1e-4)


def test_nobody_trains_on_them_and_nothing_else_changes(small):
    """The same bits as without the samples, and whatever these are."""
    prepared = prepare(load_config(small, HELD_OUT))
    held_out = prepared.partition.validation
    server = a_server(prepared)
    found = evaluations(server)

    reduced = Partition(prepared.partition.indices, prepared.partition.offsets)
    other = replace(prepared.data, x_train=prepared.data.x_train.copy())
    other.x_train[held_out] = 255
    plain = a_server(prepare(load_config(small), other, reduced))
    expected = evaluations(plain)
    assert server.w.equal(plain.w)
    assert [m.round for m in found] == [m.round for m in expected]
    for got, wanted in zip(found, expected, strict=True):
        assert got.values.items() >= wanted.values.items()
        assert got.values.keys() - wanted.values.keys() == {
            "validation/accuracy",
            "validation/loss",
        }


def test_sizes_units_and_weights_are_of_what_is_trained_on(small):
    small["model"]["hidden"] = [20_000]
    small["federation"] |= {"clients_per_unit": None, "clients": 100, "cohort": 100}
    prepared = prepare(load_config(small, ["data.validation=0.9"]))
    sizes = prepared.partition.sizes
    assert (prepared.federation.sizes == sizes).all()
    assert sizes.sum() + prepared.federation.validation_samples == 1442
    # A unit has as much to do: of a tenth of the samples, more clients.
    whole = prepare(load_config(small)).federation.clients_per_unit
    assert prepared.federation.clients_per_unit > 2 * whole
    held = prepared.federation.evaluation.breakdown.holdings
    shares = np.bincount(held.cell, held.clients[held.known][held.row] * held.share)
    of_clients = prepared.partition.histogram(prepared.data.y_train, 10) / sizes[:, None]
    assert shares == pytest.approx(of_clients.sum(axis=0))


def test_a_run_that_is_resumed_validates_as_one_that_never_stopped(small, tmp_path):
    small |= {"checkpoint": {"every": 1}}
    config = load_config(small, HELD_OUT)
    whole = Session(a_server(prepare(config)))
    list(whole.run())
    writer = prepare(config).checkpoint_writer(str(tmp_path))
    writer.prepare()
    list(Session(a_server(prepare(config)), writer).rounds(until=2))
    resumed = Session(a_server(prepare(config)), prepare(config).checkpoint_writer(str(tmp_path)))
    list(resumed.run())
    for name in ("validation/accuracy", "validation/loss", "test/accuracy"):
        assert [row[name] for _, row in sorted(resumed.history.rows.items())] == [
            row[name] for _, row in sorted(whole.history.rows.items())
        ]


def test_they_stay_as_they_are_where_clients_are_shifted():
    options = Heterogeneity(noise=1.0, label_noise=0.5)
    plain = Digits().load()
    data, partition = federate(plain, Dirichlet(alpha=0.3), options, 10, 0, validation=0.2)
    held_out = partition.validation
    assert (data.x_train[held_out] == plain.x_train[held_out]).all()
    assert (data.y_train[held_out] == plain.y_train[held_out]).all()
    assert (data.y_train != plain.y_train).sum() == pytest.approx(len(partition.indices) / 2, abs=5)


@dataclass(frozen=True, kw_only=True)
class Points(Source):
    """A user's own source: points of two classes; classes that a client lacks are the rule."""

    samples: int = 400

    def read(self) -> Dataset:
        rng = np.random.default_rng(0)
        y = np.arange(self.samples + 100) % 2
        x = rng.normal(size=(len(y), 5)).astype(np.float32) + y[:, None]
        train, test = slice(0, self.samples), slice(self.samples, None)
        return from_arrays("points", (x[train], y[train]), (x[test], y[test]))


def test_a_source_of_ones_own_and_clients_that_lack_a_class(small):
    small["data"] = {"name": f"{__name__}:Points"}
    small["partition"] = {"name": "pathological", "classes_per_client": 1}
    result = run(load_config(small, HELD_OUT), local=True)
    assert result.history["validation/accuracy"].between(0, 1).all()
    assert result.summary["validation_loss_final"] > 0
    assert result.clients["samples"].sum() == pytest.approx(320, abs=5)


def test_clients_of_one_sample_train_on_it(small):
    small["data"] = {"name": f"{__name__}:Points", "samples": 12}
    small["federation"] |= {"clients": 11, "cohort": 11}
    prepared = prepare(load_config(small, ["data.validation=0.9"]))
    assert (prepared.partition.sizes == 1).all()
    assert len(prepared.partition.validation) == 1
    assert evaluations(a_server(prepared))[-1].values["validation/accuracy"] in (0, 1)
    small["federation"]["clients"] = 12
    with pytest.raises(ConfigError, match=r"^data\.validation = 0\.9: holds out no sample: .* 1, "):
        prepare(load_config(small, ["data.validation=0.9"]))


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.1", "yes"])
def test_a_share_that_is_none_is_one_line(small, share):
    with pytest.raises(
        ConfigError,
        match=r"^data\.validation = .*: must be null or a number greater than 0 and less than 1$",
    ):
        load_config(small, [f"data.validation={share}"])


def test_without_it_nothing_has_changed():
    """Recorded before there was any."""
    config = load_config("quickstart")
    assert config.hash == "9293095fe027cf3d"
    prepared = prepare(config)
    assert prepared.partition.digest()[:16] == "008c821060a1de62"
    assert prepared.federation.validation_samples == 0


def test_an_average_that_is_not_finite_ends_nothing_and_the_model_does(small):
    prepared = prepare(load_config(small))
    server, client = prepared.specs()
    pool = LocalPool(Client(client))
    both = Evaluations(
        pool, server.federation, lambda round, what: DivergedError(f"round {round}: {what}")
    )
    good = pool.put(Broadcast(server.w, {}, server.buffers))
    broken = pool.put(Broadcast(server.w * np.nan, {}, server.buffers))
    both.begin(4, [(good, OF_MODEL), (broken, OF_AVERAGE)])
    (found,) = both.ended(wait=True)
    assert found.round == 4
    assert "test/accuracy" in found.values
    assert not any(name.startswith("average/") for name in found.values)
    both.begin(5, [(broken, OF_MODEL), (good, OF_AVERAGE)])
    with pytest.raises(DivergedError, match="round 5: the test loss"):
        list(both.ended(wait=True))
