"""Callbacks: they see the model of each round, change no result, and their errors say whose they are."""

import pickle

import own_parts
import pytest
import torch

import rayfl
from rayfl import load_config
from rayfl.errors import CallbackError, ConfigError, RunError


def calling(small, *functions):
    return small | {"callbacks": [f"own_parts:{function}" for function in functions]}


def test_they_see_each_round_and_change_no_result(small):
    own_parts.ROUNDS.clear()
    plain, config = load_config(small), load_config(calling(small, "spoils", "on_round"))
    assert plain.hash == config.hash
    assert not config.code()
    one, other = rayfl.run(plain, local=True), rayfl.run(config, local=True)
    assert one.model_sha256 == other.model_sha256
    assert set(other.history) - set(one.history) == {"own/norm"}
    seen = own_parts.ROUNDS
    assert [round.number for round in seen] == [1, 2, 3]
    assert [round.metrics["train/loss"] for round in seen] == list(other.history["train/loss"])
    last = seen[-1].state_dict()
    assert {*last} == {*one.state_dict}
    assert all(torch.equal(last[name], value) for name, value in one.state_dict.items())
    norm = torch.cat([value.flatten() for value in last.values()]).double().norm().item()
    assert other.history["own/norm"].iloc[-1] == pytest.approx(norm)
    first = seen[0].state_dict()
    assert not any(torch.equal(first[name], value) for name, value in last.items())


def test_a_model_with_buffers_and_frozen_parts_is_whole(small):
    """Batch statistics travel apart from the parameters."""
    own_parts.ROUNDS.clear()
    small["model"] = {"name": "own_parts:normalised"}
    small["partition"] = {"name": "iid"}
    small["federation"] |= {"rounds": 1, "batch_size": 10}  # no minibatch of one sample
    result = rayfl.run(load_config(calling(small, "on_round")), local=True)
    found = own_parts.ROUNDS[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in result.state_dict.items())


def test_an_error_names_round_and_function_and_has_its_lines(small):
    with pytest.raises(CallbackError) as error:
        rayfl.run(load_config(calling(small, "on_round", "fails_in_round_2")), local=True)
    again = pickle.loads(pickle.dumps(error.value))
    for found in (error.value, again):
        assert str(found) == (
            "round 2, callbacks own_parts:fails_in_round_2: KeyError: 'not in my dictionary'"
        )
        assert 'raise KeyError("not in my dictionary")' in found.traceback
        assert "callbacks.py" not in found.traceback


def test_what_is_no_number_ends_the_run(small):
    with pytest.raises(
        RunError, match=r"callbacks = 'own_parts:words': round 1: it returned .*return None"
    ):
        rayfl.run(load_config(calling(small, "words")), local=True)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", "has no 'nothing'"),
        ("number", "is no function"),
        ("of_two", "with a round alone"),
    ],
)
def test_a_wrong_one_is_refused_before_the_start(function, words, small):
    with pytest.raises(ConfigError, match=f"callbacks = 'own_parts:{function}': .*{words}"):
        rayfl.run(load_config(calling(small, function)), local=True)


@pytest.mark.slow
def test_the_server_actor_calls_them(ray_session, small):
    config = calling(small, "on_round", "fails_in_round_2") | {"ray": {"address": "auto"}}
    here = rayfl.run(load_config(calling(small, "on_round")), local=True).history["own/norm"]
    found = {}
    with pytest.raises(CallbackError, match="round 2, callbacks own_parts:fails_in_round_2"):
        rayfl.run(
            load_config(config), on_metrics=lambda m: found.setdefault(m.round, {}).update(m.values)
        )
    assert found[1]["own/norm"] == here[1]
