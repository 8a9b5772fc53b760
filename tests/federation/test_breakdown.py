"""Breakdowns of a test set, against sums over single samples."""

import re
from dataclasses import replace

import numpy as np
import pytest

from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.federation.breakdown import NAMED_DOMAINS, Breakdown, client_statistics, metric_names

CLASSES, GROUPS, CLIENTS = ("cat", "dog", "eel"), ("art", "photo"), 7


def dataset(y_train, y_test, group_train=None, group_test=None, groups=()):
    empty = np.zeros((0, 1), dtype=np.float32)
    one = np.ones(1, dtype=np.float32)
    return Dataset(
        *("made up", empty, y_train, empty, y_test, one, one, CLASSES),
        groups=groups,
        group_train=group_train,
        group_test=group_test,
    )


@pytest.fixture
def case():
    """Data with two domains, seven clients, and which predictions were right."""
    rng = np.random.default_rng(3)
    y_train, y_test = rng.integers(0, 3, 200), rng.integers(0, 3, 90)
    data = dataset(y_train, y_test, rng.integers(0, 2, 200), rng.integers(0, 2, 90), GROUPS)
    cuts = np.sort(rng.choice(np.arange(1, 200), CLIENTS - 1, replace=False))
    partition = Partition(rng.permutation(200), np.array([0, *cuts, 200]))
    return data, partition, rng.random(90) < 0.6


def share(correct, chosen):
    return sum(c for c, is_in in zip(correct, chosen, strict=True) if is_in) / sum(chosen)


def expected_accuracy(data, samples, correct):
    """Mean over a client's samples of the accuracy in the sample's cell, where that is known."""
    has_groups = data.group_train is not None
    found = []
    for s in samples:
        chosen = data.y_test == data.y_train[s]
        if has_groups:
            chosen = chosen & (data.group_test == data.group_train[s])
        if chosen.any():
            found.append(share(correct, chosen))
    return np.mean(found) if found else np.nan


@pytest.mark.parametrize("has_groups", [True, False])
def test_clients_classes_and_domains_match_sums_over_samples(case, has_groups):
    data, partition, correct = case
    if not has_groups:
        data = replace(data, groups=(), group_train=None, group_test=None)
    breakdown = Breakdown.of(data, partition, per_class=True, per_client=True)
    clients = [expected_accuracy(data, partition.client(i), correct) for i in range(CLIENTS)]
    np.testing.assert_allclose(breakdown.clients(correct), clients, rtol=1e-12)

    expected = {f"test/class/{n}": share(correct, data.y_test == i) for i, n in enumerate(CLASSES)}
    if has_groups:
        domains = {n: share(correct, data.group_test == i) for i, n in enumerate(GROUPS)}
        expected |= {f"test/domain/{name}": value for name, value in domains.items()}
        expected["test/domain_mean"] = np.mean(list(domains.values()))
        expected["test/domain_worst"] = min(domains.values())
    expected |= {
        "client/accuracy_mean": np.mean(clients),
        "client/accuracy_p10": np.quantile(clients, 0.1),
        "client/accuracy_p50": np.median(clients),
        "client/accuracy_p90": np.quantile(clients, 0.9),
        "client/accuracy_worst10": min(clients),  # of seven clients the worst tenth is one
    }
    metrics = breakdown.metrics(correct)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-12), name


def test_the_mean_over_clients_of_one_size_is_the_accuracy_where_the_splits_have_equal_shares():
    """Test and train set with the same shares of the cells: clients only reorder the mean."""
    labels = np.repeat([0, 1, 2], [40, 20, 60])
    correct = np.random.default_rng(1).random(120) < 0.5
    order = np.random.default_rng(2).permutation(120)
    partition = Partition(order, np.arange(0, 121, 12))
    metrics = Breakdown.of(dataset(labels, labels), partition, False, True).metrics(correct)
    assert metrics["client/accuracy_mean"] == pytest.approx(correct.mean(), rel=1e-12)


def test_the_worst_tenth_of_many_clients_is_their_mean():
    labels = np.zeros(25, dtype=np.int64)
    groups = np.arange(25)
    data = dataset(labels, labels, groups, groups, tuple(map(str, groups)))
    partition = Partition(groups, np.arange(26))  # client i has domain i, which is right or wrong
    breakdown = Breakdown.of(data, partition, False, True)
    metrics = breakdown.metrics(np.arange(25) >= 2)
    assert metrics["client/accuracy_worst10"] == pytest.approx(1 / 3)
    assert metrics["test/domain_worst"] == 0
    assert metrics["test/domain_mean"] == pytest.approx(23 / 25)


def test_cells_without_test_samples_are_left_out(case):
    """Client 0 has a known and an unknown class; client 1 only the unknown one."""
    data = dataset(np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1]))
    partition = Partition(np.array([0, 1, 3, 4, 2]), np.array([0, 3, 4, 5]))
    correct = np.array([True, True, True, False, True, False])
    breakdown = Breakdown.of(data, partition, per_class=True, per_client=True)
    np.testing.assert_array_equal(breakdown.clients(correct), [0.75, np.nan, 0.5])
    metrics = breakdown.metrics(correct)
    assert metrics["client/accuracy_mean"] == 0.625
    assert "test/class/eel" not in metrics


def test_a_test_set_of_another_domain_says_nothing_of_clients_and_of_its_own_domain_all():
    y = np.array([0, 1, 2])
    data = dataset(y, y, np.zeros(3, dtype=np.int64), np.ones(3, dtype=np.int64), GROUPS)
    breakdown = Breakdown.of(data, Partition(y, np.array([0, 1, 3])), False, True)
    metrics = breakdown.metrics(np.array([True, False, True]))
    assert metrics.keys() == {"test/domain/photo", "test/domain_mean", "test/domain_worst"}
    assert metrics["test/domain/photo"] == pytest.approx(2 / 3)


def test_domains_that_only_the_train_set_has_are_left_aside(case):
    data, partition, correct = case
    plain = replace(data, groups=(), group_train=None, group_test=None)
    half = replace(data, group_test=None)
    with_half, without = (Breakdown.of(d, partition, True, True) for d in (half, plain))
    assert with_half.metrics(correct) == without.metrics(correct)


def test_what_is_off_is_not_computed(case):
    data, partition, correct = case
    data = replace(data, groups=(), group_train=None, group_test=None)
    breakdown = Breakdown.of(data, partition, per_class=False, per_client=False)
    assert breakdown.metrics(correct) == {}


def test_many_domains_have_no_curves_of_their_own():
    n = NAMED_DOMAINS + 1
    labels, groups = np.zeros(n, dtype=np.int64), np.arange(n)
    data = dataset(labels, labels, groups, groups, tuple(f"writer {i}" for i in range(n)))
    breakdown = Breakdown.of(data, Partition(groups, np.array([0, n])), False, False)
    assert breakdown.metrics(groups > 0).keys() == {"test/domain_mean", "test/domain_worst"}


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (("T-shirt/top", "ankle boot", "8.5"), ["T-shirt_top", "ankle boot", "8.5"]),
        (("C", "C#", "C+"), ["C", "C_", "C_"]),
        (("..", "狗"), ["", "狗"]),
        (("a" * 300, "b"), ["a" * 100, "b"]),
    ],
)
def test_names_are_fit_for_mlflow_and_stay_different(names, keys):
    found = metric_names(names)
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[\w\- .]{1,110}", name) and name.strip(".") for name in found)
    numbered = [f"{i} {key}" for i, key in enumerate(keys)]
    assert found == (keys if len(set(keys)) == len(keys) and all(keys) else numbered)


def test_statistics_over_clients_are_those_of_all_their_values():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 11, 100, 999):
        accuracies, clients = rng.random(n), rng.integers(1, 5, n)
        values = np.repeat(accuracies, clients)
        found = client_statistics(accuracies, clients)
        worst = np.sort(values)[: -(-len(values) // 10)]
        expected = {f"p{q}": np.quantile(values, q / 100) for q in (10, 50, 90)}
        expected |= {"mean": values.mean(), "worst10": worst.mean()}
        for name, value in expected.items():
            assert found.pop(name) == pytest.approx(value, rel=1e-13)
        assert not found


def test_clients_with_equal_samples_are_computed_once():
    """Clients 0 and 2 have two cats and a dog, client 1 a dog, client 3 a cat and two dogs."""
    y_train = np.array([0, 1, 0, 1, 1, 0, 0, 1, 0, 1])
    partition = Partition(np.arange(10), np.array([0, 3, 4, 7, 10]))
    data = dataset(y_train, np.array([0, 0, 0, 1, 1]))
    correct = np.array([True, False, False, True, True])
    breakdown = Breakdown.of(data, partition, per_class=False, per_client=True)
    assert breakdown.holdings is not None
    np.testing.assert_array_equal(breakdown.holdings.of_client, [0, 1, 0, 2])
    np.testing.assert_array_equal(breakdown.holdings.clients, [2, 1, 1])
    np.testing.assert_allclose(breakdown.clients(correct), [5 / 9, 1, 5 / 9, 7 / 9], rtol=1e-15)
    mean = breakdown.metrics(correct)["client/accuracy_mean"]
    assert mean == pytest.approx(np.mean([5 / 9, 1, 5 / 9, 7 / 9]), rel=1e-15)


def test_distributions_are_numbered_as_their_clients_come():
    """Clients with one to four classes, and few samples: many have the same, and all have known classes."""
    rng = np.random.default_rng(5)
    y_train = rng.integers(0, 4, 4000)
    cuts = np.unique(rng.integers(1, 4000, 1500))
    partition = Partition(np.arange(4000), np.array([0, *cuts, 4000]))
    data = dataset(y_train, np.arange(3))  # nothing is known of the fourth class
    held = Breakdown.of(data, partition, per_class=False, per_client=True).holdings
    assert held is not None
    known: dict[bytes, int] = {}
    expected = [
        known.setdefault(row.tobytes(), len(known)) for row in partition.histogram(y_train, 4)
    ]
    np.testing.assert_array_equal(held.of_client, expected)
    assert held.clients.tolist() == np.bincount(expected).tolist()
    assert 100 < len(known) < len(expected)
