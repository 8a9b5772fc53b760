"""Filters: what they select, and what they say about text that is none."""

import contextlib

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfl.analysis.filters import check_key, parse, select
from rayfl.config.layers import parse_overrides
from rayfl.errors import ConfigError

RUNS = pd.DataFrame(
    [
        {"algorithm.name": "fedavg", "seed": 0, "partition.alpha": 0.1, "model.hidden": (64,)},
        {"algorithm.name": "fedsam", "seed": 1, "partition.alpha": 1, "algorithm.rho": 0.05},
        {"algorithm.name": "fedsam", "seed": 2, "partition.alpha": 1e-3, "algorithm.rho": None},
        {"algorithm.name": "it's, and", "seed": 3, "data.augment": True, "algorithm.rho": 2},
    ],
    dtype=object,
)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("algorithm.name=fedavg", [0]),
        ("algorithm.name==fedavg", [0]),
        ("algorithm.name != fedavg", [1, 2, 3]),
        ("fedsam", [1, 2]),
        ("fedsam, algorithm.rho=0.05", [1]),
        ("""algorithm.name="it's, and\"""", [3]),
        ("algorithm.rho = 0.050", [1]),
        ("algorithm.rho=.05", [1]),
        ("algorithm.rho<=2 and algorithm.rho>0.05", [3]),
        ("algorithm.rho >= 0.05", [1, 3]),
        ("algorithm.rho<2", [1]),
        ("algorithm.rho=null", [0, 2]),
        ("algorithm.rho!=0.05", [0, 2, 3]),
        ("partition.alpha=1.0", [1]),
        ("partition.alpha in [0.1, 1e-3]", [0, 2]),
        ("seed in [1,2] and algorithm.rho=null", [2]),
        ("algorithm.name in ['fedavg', fedsam]", [0, 1, 2]),
        ("model.hidden=[64]", [0]),
        ("model.hidden in [[64],[32, 16]]", [0]),
        ("data.augment=true", [3]),
        ("data.augment=1", []),  # true is no number
        ("seed=true", []),
        ("seed=1,seed=2", []),
    ],
)
def test_selects(text, seeds):
    assert list(select(RUNS, parse(text))["seed"]) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends where a key should follow"),
        ("seed=", "ends where a value should follow"),
        ("a.b", "ends where one of = != < <= > >= in"),
        ("seed=1 or seed=2", "'or' is left over"),
        ("seed=1 and", "ends where a key should follow"),
        ("seed<fedavg", "seed < 'fedavg' must compare with a number"),
        ("seed in 3", "seed in 3 must have a list"),
        ("seed in [1 2]", "lacks a comma or its ']'"),
        ("seed in [1", "lacks a comma or its ']'"),
        ("seed='1", "cannot be read"),
        ("seed=!1", "cannot be read"),
        ("=1", "= stands where a key should"),
        ("seed = <", "'<' stands where a value should"),
        ("x=" + "[" * 5000, "nested too deeply"),
        ("__import__('os').system('x')", "stands where one of"),
    ],
)
def test_says_what_cannot_be_read(text, message):
    with pytest.raises(ConfigError) as raised:
        parse(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "word", [".05", "5e-2", "1_0", "~", "yes", "2024-01-01", "-3", "a:B", "0x1f"]
)
def test_a_word_means_the_same_in_an_override(word):
    (condition,) = parse(f"a.b={word}")
    value = parse_overrides([f"a.b={word}"])["a"]["b"]
    assert (condition.value, type(condition.value)) == (value, type(value))


def test_an_unknown_key_is_named_with_the_closest():
    with pytest.raises(
        ConfigError, match=r"rho: no run has this key \(did you mean 'algorithm.rho'"
    ):
        select(RUNS, parse("rho=1"))
    with pytest.raises(ConfigError, match=r"algorithm.roh.*: algorithm.rho, algorithm.name$"):
        select(RUNS, parse("algorithm.roh=1"))


def test_of_many_names_the_closest_are_listed():
    names = [f"test/class/{i}" for i in range(90)] + ["federation.rounds", "rounds"]
    with pytest.raises(ConfigError) as error:
        check_key("round", names)
    assert "the closest: rounds, " in str(error.value)
    assert str(error.value).endswith(", and 84 more")


@given(st.text(max_size=40))
def test_any_text_is_a_filter_or_a_config_error(text):
    with contextlib.suppress(ConfigError):  # any other error fails
        assert parse(text)
