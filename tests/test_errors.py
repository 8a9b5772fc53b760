"""Errors are one line of the fields that they hold, and stay so across processes."""

import pickle

import pytest

from rayfl.errors import ClientError, ConfigError, DivergedError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("no such file"), "no such file"),
        (ConfigError("is missing", "a.b", hint="add it: text"), "a.b: is missing; add it: text"),
        (ConfigError(key="a.b", value=None, allowed="text"), "a.b = null: must be text"),
        (ConfigError("is odd", "a.b", "x\ny"), "a.b = 'x\\ny': is odd"),
        (DivergedError("too large; lower a.lr", keys=("a.lr",)), "too large; lower a.lr"),
    ],
)
def test_fields_make_one_line(error, text):
    assert str(error) == text
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == text
    assert vars(again) == vars(error)
    assert str(again.rekeyed(str.upper)) == str(error.rekeyed(str.upper))


def test_keys_and_not_values_are_named_anew():
    error = ConfigError("less than a.n", "a.b", "a.n", hint="lower a.b", keys=("a.n", "a.b"))
    there = error.rekeyed(lambda key: f"base.{key}")
    assert str(there) == "base.a.b = 'a.n': less than base.a.n; lower base.a.b"
    assert str(error).startswith("a.b = 'a.n'")


def test_an_error_of_a_client_keeps_its_own_words():
    error = ClientError(3, (1, 2), "fedavg", "Traceback\nValueError: x")
    again = pickle.loads(pickle.dumps(error))
    assert (again.round, again.clients) == (3, (1, 2))
    assert str(again) == str(again.rekeyed(str.upper)) == str(error)
