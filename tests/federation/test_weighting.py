"""What clients of unequal size weigh in the cohort's means, against numpy on softmax regression."""

import numpy as np
import pytest
from conftest import each, small_config
from local_pool import a_server

from rayfl.algorithms import ALGORITHMS
from rayfl.config.schema import load_config
from rayfl.data.partition import Partition
from rayfl.prepare import prepare
from rayfl.training.batches import batch_schedule
from rayfl.training.weighting import weights

SIZES, ROUNDS, LR, BATCH = (10, 1000, 300), 3, 0.02, 50
EPOCHS = {"local_epochs": 1}


@pytest.fixture
def unequal(small):
    """A config of softmax regression on three clients, and the partition of `SIZES`."""
    small["model"]["hidden"] = []
    small["federation"] = {
        "clients": 3,
        "cohort": 2,
        "clients_per_unit": 1,
        "rounds": ROUNDS,
        "batch_size": BATCH,
        "lr": LR,
    } | EPOCHS
    return small, Partition(np.arange(sum(SIZES)), np.cumsum([0, *SIZES]))


def prepared(config, partition, **federation):
    config["federation"] |= federation
    experiment = load_config(config)
    return prepare(experiment, experiment.data.load(), partition)


def gradient(w, x, y):
    """Of the mean cross-entropy of softmax regression, `w [10 * 64 + 10]` as torch lays it out."""
    logits = x @ w[:640].reshape(10, 64).T + w[640:]
    p = np.exp(logits - logits.max(1, keepdims=True))
    error = (p / p.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
    return np.concatenate([(error.T @ x).ravel(), error.sum(0)])


def scaffold(ready, weighting):
    """SCAFFOLD, whose c is the mean of all c_i by the clients' weights; float64 numpy."""
    data = ready.data
    pixels = data.x_train.reshape(len(data.x_train), -1)
    x = (pixels / (255 if pixels.dtype == np.uint8 else 1) - data.mean) / data.std
    w = ready.specs()[0].w.astype(np.float64)
    K = [-(-n // BATCH) for n in SIZES]
    of_all = {"uniform": (1, 1, 1), "samples": SIZES, "steps": K}[weighting]
    c, c_i = np.zeros_like(w), np.zeros((3, len(w)))
    for round in range(1, ROUNDS + 1):
        cohort = ready.federation.cohort(round)
        share = {i: of_all[i] / sum(of_all[j] for j in cohort) for i in cohort}
        D, new = np.zeros_like(w), c_i.copy()
        for i in cohort:
            order = batch_schedule(
                ready.partition.client(i), BATCH, K[i], ready.config.seed, round, i, "none", 1
            )
            y = w
            for rows, n in zip(order.indices, order.sizes, strict=True):
                g = gradient(y, x[rows[:n]], data.y_train[rows[:n]])
                y = y - LR * (g + c - c_i[i])
            new[i] = c_i[i] - c + (w - y) / (K[i] * LR)
            D += share[i] * (y - w)
        w, c_i = w + D, new
        c = sum(of_all[i] * c_i[i] for i in range(3)) / sum(of_all)
    return w, c


@pytest.mark.parametrize("weighting", ["uniform", "samples", "steps"])
def test_scaffold_of_unequal_clients_equals_numpy(weighting, unequal):
    ready = prepared(*unequal, weighting=weighting)
    server = a_server(ready, ALGORITHMS["scaffold"]())
    list(server.run())
    w, c = scaffold(ready, weighting)
    moved = np.abs(w - ready.specs()[0].w).max()
    assert np.abs(server.w.numpy() - w).max() < 1e-4 * moved
    np.testing.assert_allclose(server.state["c"], c, rtol=1e-3, atol=1e-5)


def test_the_weightings_lead_apart(unequal):
    config, partition = unequal
    ready = prepared(config, partition)
    ends = [scaffold(ready, weighting)[0] for weighting in ("uniform", "samples", "steps")]
    moved = np.abs(ends[0] - ready.specs()[0].w).max()
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(ends[one] - ends[other]).max() > 1e-2 * moved


def test_weighted_metrics_are_those_of_the_weighted_mean(unequal):
    """The training loss is the objective's that the weighted mean descends."""
    config, partition = unequal
    ready = prepared(config, partition, cohort=3, rounds=1)
    uniform, *_ = a_server(ready, ALGORITHMS["fedavg"]()).run()
    one_by_one = []
    for client in range(3):
        alone = prepared(config, partition, cohort=3, rounds=1)
        alone.federation.__dict__["cohort"] = lambda round, client=client: [client]
        first, *_ = a_server(alone, ALGORITHMS["fedavg"]()).run()
        one_by_one.append(first.values["train/loss"])
    assert uniform.values["train/loss"] == pytest.approx(np.mean(one_by_one))
    weighted = prepared(config, partition, cohort=3, rounds=1, weighting="samples")
    by_samples, *_ = a_server(weighted, ALGORITHMS["fedavg"]()).run()
    assert by_samples.values["train/loss"] == pytest.approx(
        np.average(one_by_one, weights=SIZES), rel=1e-5
    )


@pytest.fixture(scope="module")
def equal():
    """The same experiment under each weighting, on three clients of 40 samples."""
    config = small_config()
    config["federation"] |= {"clients": 3, "cohort": 2, "rounds": 3, "lr": 0.01}
    partition = Partition(np.arange(120), np.array([0, 40, 80, 120]))
    return [prepared(config, partition, weighting=w) for w in ("uniform", "samples", "steps")]


@pytest.mark.slow
@each(name=ALGORITHMS.keys())
def test_on_equal_clients_every_method_is_the_same_under_all_weightings(name, equal):
    """To rounding: a mean of equal weights is the plain one, in every upload and in ctx.participation."""
    ends = []
    for ready in equal:
        server = a_server(ready, ALGORITHMS[name]())
        list(server.run())
        ends.append(server.w.numpy())
    moved = np.abs(ends[0] - equal[0].specs()[0].w).max()
    assert all(np.abs(end - ends[0]).max() <= 1e-3 * moved for end in ends[1:])


def test_weights_are_floats_of_the_formula():
    samples, steps = np.array([10, 1000]), np.array([1, 20])
    for weighting, expected in {
        "uniform": [1, 1],
        "samples": [10, 1000],
        "steps": [1, 20],
    }.items():
        found = weights(weighting, samples, steps)
        assert found.dtype == np.float64
        assert found.tolist() == expected
