"""Hyper-parameters that change over the rounds: a run is that of another method in every round."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from conftest import each, small_config
from local_pool import a_server

import rayfl
from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.scheduled import Ramp, Scheduled
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.prepare import prepare


def test_a_ramp_goes_evenly_and_then_keeps_its_value():
    ramp = Ramp(0.1, 0.3, 5, 0.7)
    assert [ramp.at(r) for r in range(1, 8)] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.7, 0.7])
    assert Ramp(0.1, 0.3, 1, 0.3).at(1) == 0.1


@pytest.fixture(scope="module")
def ready():
    config = small_config()
    config["federation"] |= {"rounds": 3, "lr": 0.01}
    return prepare(load_config(config))


@pytest.mark.slow
@each(name=[name for name in ALGORITHMS if name != "local"])  # whose global model stays
def test_every_method_trains_in_each_round_with_that_rounds_numbers(name, ready):
    """All its numbers fall at once; the other run changes the method by hand between its rounds."""
    method = ALGORITHMS[name]()
    numbers = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    ramps = {n: Ramp(v, 0.8 * v, 3, 0.8 * v) for n, v in numbers.items() if type(v) is float and v}
    scheduled = a_server(ready, Scheduled(method=method, ramps=ramps))
    list(scheduled.run())
    snapshot = None
    for round in (1, 2, 3):
        values = {n: (1, 0.9, 0.8)[round - 1] * numbers[n] for n in ramps}
        by_hand = a_server(ready, dataclasses.replace(method, **values))
        if snapshot is not None:
            by_hand.restore(snapshot)
        list(by_hand.run(until=round))
        snapshot = by_hand.snapshot()
    moved = (scheduled.w - torch.tensor(ready.specs()[0].w)).abs().max()
    assert (scheduled.w - by_hand.w).abs().max() < 1e-5 * moved  # 0.9 v is not the ramp's last bit
    plain = a_server(ready, method)
    list(plain.run())
    assert not torch.equal(plain.w, scheduled.w)


def test_a_schedule_is_part_of_the_experiment(small):
    plain = load_config(small, ["algorithm.rho=0.1"])
    given = ["algorithm.rho={from: 0.1, to: 0.2, rounds: 2}"]
    config = load_config(small, given)
    assert config.hash != plain.hash
    again = load_config(config.model_dump(mode="json"))
    assert again == config
    assert again.hash == config.hash
    assert config.flat()["algorithm.rho.to"] == 0.2
    constant = load_config(small, ["algorithm.rho={from: 0.1, to: 0.1, rounds: 2}"])
    assert rayfl.run(constant, local=True).model_sha256 == rayfl.run(plain, local=True).model_sha256
    assert rayfl.run(config, local=True).model_sha256 != rayfl.run(plain, local=True).model_sha256


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rho={from: 0.1}", "algorithm.rho.to: is missing; add it: a number"),
        (
            "rho={from: 0.1, to: -1, rounds: 5}",
            "algorithm.rho = -1.0: must be a number of at least 0",
        ),
        (
            "rho={from: 0.1, to: 1, rounds: 0}",
            "algorithm.rho.rounds = 0: must be an integer greater than 0",
        ),
        ("rho={from: a, to: 1, rounds: 3}", "algorithm.rho.from = 'a': must be a number"),
        (
            "rho={from: 0.1, to: 0.2, rounds: 5, then: -2}",
            "algorithm.rho = -2.0: must be a number of at least 0",
        ),
        (
            "adaptive={from: 0, to: 1, rounds: 3}",
            "algorithm.adaptive = 0.0: must be true or false",
        ),
    ],
)
def test_what_is_no_schedule_is_one_line(given, message, small):
    with pytest.raises(ConfigError) as caught:
        load_config(small, [f"algorithm.{given}"])
    assert str(caught.value) == message


def test_a_number_that_is_read_at_the_start_alone_cannot_change(small):
    with pytest.raises(
        ConfigError, match=r"^algorithm\.alpha = .*: is read before the first round"
    ):
        load_config(small, ["algorithm.alpha={from: 0.1, to: 0.9, rounds: 3}"])


def test_a_whole_ramp_takes_the_place_of_another(small):
    base = load_config(small, ["algorithm.rho={from: 0.1, to: 0.2, rounds: 5, then: 0}"])
    other = load_config(
        base.model_dump(mode="json"), ["algorithm.rho={from: 0.3, to: 0.4, rounds: 7}"]
    )
    assert other.algorithm.ramps == {"rho": Ramp(0.3, 0.4, 7, 0.4)}


def test_a_ramp_of_numbers_that_float32_does_not_hold_is_one_line(small):
    with pytest.raises(ConfigError, match=r"^algorithm\.rho\.to = 1e\+300: must be 0, or from"):
        load_config(small, ["algorithm.rho={from: 0.1, to: 1e300, rounds: 3}"])


@dataclass(frozen=True, kw_only=True)
class MixesLater(Algorithm):
    """Breaks a rule where rho > 0."""

    rho: float = 0.0

    def local_step(self, x, memory, grad, ctx):
        g = grad(x)
        return (g - self.rho * g.mean(0) if self.rho > 0 else g), memory


def test_a_method_of_ones_own_is_checked_at_the_turns_of_its_ramps(small):
    small["algorithm"] = {
        "name": "test_scheduled:MixesLater",
        "rho": {"from": 0.0, "to": 0.1, "rounds": 3},
    }
    with pytest.raises(ConfigError, match="mixes clients"):
        prepare(load_config(small))


def test_nobody_trains_by_the_schedule_itself():
    scheduled = Scheduled(method=ALGORITHMS["fedsam"](), ramps={"rho": Ramp(0.1, 0.2, 2, 0.2)})
    with pytest.raises(TypeError, match="at\\(round\\)"):
        scheduled.server_step(w=None, server={}, mean={}, ctx=None)
