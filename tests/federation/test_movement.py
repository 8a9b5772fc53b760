"""Metrics of the mean update, against float64 arithmetic on what each client sent."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import each

from rayfl import load_config, run
from rayfl.algorithms.vectors import precise_norm
from rayfl.federation.client import Client
from rayfl.federation.movement import BLOCK, ROW, Movement, inner_products


def recorded(config, monkeypatch):
    """History of a run in this process, and the uploads `delta` of each round, float64 `[rounds, S, P]`."""
    rounds, train = {}, Client.train

    def recording(self, unit, broadcast, memories):
        result, new = train(self, unit, broadcast, memories)
        assert len(unit.clients) == 1  # so that a unit's sum is what the client sent
        delta = result.sums["delta"].astype(np.float64)
        rounds.setdefault(unit.round, {})[unit.clients] = delta
        return result, new

    monkeypatch.setattr(Client, "train", recording)
    history = run(load_config(config), local=True).history
    deltas = [np.stack([d for _, d in sorted(one.items())]) for _, one in sorted(rounds.items())]
    return history, np.stack(deltas)


def cosine(a, b):
    return a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)


def sums(decay, means):
    """The decaying sum of all mean updates before each round but the first."""
    total, found = np.zeros_like(means[0]), []
    for mean in means[:-1]:
        total = decay * total + mean
        found.append(total)
    return found


# The momentum that each method has, from the mean updates before: its length is no matter.
MOMENTA = {
    "fedavg": None,
    "fedavgm": lambda means: sums(0.9, means),
    "fednsam": lambda means: sums(0.85, means),
    "fedadam": lambda means: sums(0.9, means),
    "fedwmsam": lambda means: list(means[:-1]),
}


@each(name=list(MOMENTA))
def test_what_a_run_says_of_its_updates_is_so(name, small, monkeypatch):
    small["algorithm"] = {"name": name}
    small["federation"] |= {"rounds": 4, "clients_per_unit": 1}
    history, deltas = recorded(small, monkeypatch)
    means = deltas.mean(1)

    norms = np.linalg.norm(means, axis=1)
    assert history["update/norm"].tolist() == pytest.approx(norms.tolist(), rel=1e-6)
    agreement = norms / np.linalg.norm(deltas, axis=2).mean(1)
    assert history["update/agreement"].tolist() == pytest.approx(agreement.tolist(), rel=1e-5)
    assert (history["update/agreement"] < 0.999).all()

    previous = history["update/cos_previous"]
    assert math.isnan(previous.loc[1])
    expected = [cosine(b, a) for a, b in pairwise(means)]
    assert previous.loc[2:].tolist() == pytest.approx(expected, abs=1e-6)

    momentum = MOMENTA[name]
    assert ("update/cos_momentum" in history) == (momentum is not None)
    if momentum is not None:
        assert math.isnan(history["update/cos_momentum"].loc[1])  # it is 0 then
        expected = [cosine(d, p) for d, p in zip(means[1:], momentum(means), strict=True)]
        assert history["update/cos_momentum"].loc[2:].tolist() == pytest.approx(expected, abs=1e-6)


@each(algorithm=["fedavgm", "fednsam_momentum"])
def test_a_momentum_without_weight_is_none(algorithm, small):
    small["algorithm"] = {"name": algorithm, "gamma": 0.0}
    history = run(load_config(small), local=True).history
    assert "update/cos_momentum" not in history
    assert history["update/cos_previous"].notna().sum() == 2


def test_one_round_has_no_direction_to_compare(small):
    small["federation"]["rounds"] = 1
    result = run(load_config(small), local=True)
    found = [name for name in result.history if name.startswith("update/")]
    assert sorted(found) == ["update/agreement", "update/norm"]
    assert "echo_reversals" not in result.summary


@each(size=[1, ROW - 1, ROW, ROW + 1, BLOCK, 2 * BLOCK + ROW + 7])
def test_inner_products(size):
    generator = torch.Generator().manual_seed(size)
    a, b = (torch.randn(size, generator=generator) * 1e-3 + 1e-4 for _ in range(2))
    pairs = [(a, b), (a, a), (b, a)]
    for (u, v), found in zip(pairs, inner_products(pairs), strict=True):
        scale = float(u.double().norm() * v.double().norm())
        # A row is added up in float32, in an order that is the processor's.
        error = abs(found - float(u.double() @ v.double()))
        assert error < 2 * torch.finfo(torch.float32).eps * scale


@each(size=[1, 1023, 1024, 300_000, 3_000_001])
def test_precise_norm(size):
    generator = torch.Generator().manual_seed(size)
    stack = torch.randn(2, size, generator=generator) * 1e-3
    found = precise_norm(stack)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, stack.double().norm(dim=-1), rtol=1e-7, atol=0)


def test_one_client_agrees_with_itself_in_a_large_model(small):
    small["algorithm"], small["model"] = {"name": "fedavg"}, {"name": "mlp", "hidden": [7000, 300]}
    small["federation"] |= {"rounds": 1, "cohort": 1, "local_epochs": None, "local_steps": 1}
    history = run(load_config(small), local=True).history
    assert history["update/agreement"].tolist() == pytest.approx([1.0], rel=1e-6)


def unit(*entries):
    return torch.tensor(entries, dtype=torch.float32)


def test_cosines_of_known_vectors():
    movement = Movement()
    assert movement.metrics(unit(3, 4), None, 10.0) == {
        "update/norm": 5.0,
        "update/agreement": 0.5,
    }
    assert movement.metrics(unit(-3, -4), unit(4, -3), 5.0) == {
        "update/norm": 5.0,
        "update/agreement": 1.0,
        "update/cos_previous": -1.0,
        "update/cos_momentum": 0.0,
    }
    assert movement.last is not None
    assert movement.last.tolist() == [-3, -4]


@each(
    momentum={
        "0": unit(0, 0),
        "almost 0": unit(1e-14, 0),
        "infinite": unit(math.inf, 0),
        "nan": unit(math.nan, 0),
        "with an infinite square": unit(1e25, 1e25),
    }
)
def test_what_has_no_direction_has_no_cosine(momentum):
    found = Movement(unit(0, 0)).metrics(unit(3, 4), momentum, 5.0)
    assert found == {"update/norm": 5.0, "update/agreement": 1.0}
    assert Movement(unit(3, 4)).metrics(unit(0, 0), momentum, 0.0) == {"update/norm": 0.0}


def test_a_direction_that_repeats_has_no_cosine_above_1():
    for seed in range(20):
        delta = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        cosines = Movement(delta).metrics(delta * 3, delta / 7, 1.0)
        assert 1 - 1e-6 < cosines["update/cos_previous"] <= 1
        assert 1 - 1e-6 < cosines["update/cos_momentum"] <= 1
