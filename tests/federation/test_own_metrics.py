"""Metrics of one's own: on whole splits, of any number of actors, and none that is wrong ends a run."""

import logging

import numpy as np
import own_parts
import pytest

import rayfl
from rayfl import load_config
from rayfl.errors import ConfigError
from rayfl.federation.own_metrics import warn_of_missing
from rayfl.prepare import prepare


def asked(small, **functions):
    paths = {name: f"own_parts:{function}" for name, function in functions.items()}
    return small | {"evaluation": {"metrics": paths}}


def test_they_are_of_both_splits_and_of_the_average(small, monkeypatch):
    monkeypatch.setattr("rayfl.federation.evaluation.EVALUATION_UNIT", 100)  # four of them
    config = asked(small, right="right", greedy="greedy", total="total")
    config["evaluation"]["average"] = {"ema": 0.5}
    config["data"]["validation"] = 0.2
    own_parts.CALLS.clear()
    history = rayfl.run(load_config(config), local=True).history
    for ours, theirs in (
        ("test/right", "test/accuracy"),
        ("validation/right", "validation/accuracy"),
        ("average/right", "average/accuracy"),
        ("average/validation_right", "average/validation_accuracy"),
    ):
        assert np.allclose(history[ours], history[theirs], atol=1e-12)
    held_out = len(prepare(load_config(config)).partition.validation)
    assert {355, held_out} == set(own_parts.CALLS)


def test_they_change_no_result(small):
    plain, config = load_config(small), load_config(asked(small, total="total"))
    assert plain.hash == config.hash
    one, other = rayfl.run(plain, local=True), rayfl.run(config, local=True)
    assert one.model_sha256 == other.model_sha256
    assert set(other.history) - set(one.history) == {"test/total"}


@pytest.mark.slow
def test_any_number_of_actors_gives_the_same_bits(ray_session, small):
    config = asked(small, total="total") | {"ray": {"address": "auto"}}
    here = rayfl.run(load_config(config), local=True).history["test/total"]
    there = rayfl.run(load_config(config, ["resources.num_actors=2"])).history["test/total"]
    assert here.equals(there)


WITHOUT_A_NUMBER = {
    "not_a_number": "test/bad is nan",
    "fails_on_a_model": "test/bad fails (ValueError: no such outputs)",
}
REFUSED = {
    "raising": ("fails on outputs [355, 10] and targets [355]", "no such metric"),
    "many": ("fails on outputs", "one number"),
    "number": ("is no function, but 3",),
    "nothing": ("own_parts has no 'nothing'",),
}


@pytest.mark.parametrize("function", WITHOUT_A_NUMBER)
def test_one_without_a_number_is_left_out_with_a_warning(function, small, caplog):
    with caplog.at_level(logging.WARNING):
        history = rayfl.run(
            load_config(asked(small, good="right", bad=function)), local=True
        ).history
    assert "test/bad" not in history
    assert history["test/good"].notna().all()
    assert WITHOUT_A_NUMBER[function] in caplog.text


@pytest.mark.parametrize("function", REFUSED)
def test_a_wrong_one_is_refused_before_the_start(function, small):
    with pytest.raises(ConfigError) as error:
        rayfl.run(load_config(asked(small, f1=function)), local=True)
    for words in ("evaluation.metrics.f1", f"own_parts:{function}", *REFUSED[function]):
        assert words in str(error.value)


def test_names_of_rayfl_are_not_to_be_had(small):
    for name in ("loss", "validation_f1", "f 1", "domain_worst", "é"):
        with pytest.raises(ConfigError, match=r"evaluation\.metrics\..* another name"):
            load_config(asked(small, **{name: "right"}))


def test_the_driver_tells_of_what_a_server_actor_left_out(caplog):
    warn_of_missing(["f1"], {"train/loss": 1.0})
    warn_of_missing(["f1"], {"test/loss": 1.0, "test/f1": 0.5})
    assert not caplog.text
    warn_of_missing(["f1"], {"test/loss": 1.0})
    assert "evaluation.metrics f1" in caplog.text
