"""Filters over runs: `algorithm.name=fedwmsam and partition.alpha<=0.3`.

    filter    = condition { ("and" | ",") condition }
    condition = key ("=" | "!=" | "<" | "<=" | ">" | ">=") value  |  key "in" "[" value, ... "]"
              | algorithm, which is short for algorithm.name=algorithm
    value     = word | 'text' | "text" | [ value, ... ], where a word is read as in an override

A filter is data: it is parsed here, never evaluated as code. A key that a run does not have is null.
"""

import difflib
import json
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayfl.config.values import parse_value, plain
from rayfl.errors import ConfigError
from rayfl.text import shown

_TOKEN = re.compile(
    r"""(?P<text>'[^']*'|"[^"]*") | (?P<sign><=|>=|!=|==|[=<>,\[\]]) | (?P<word>[^\s=<>!,\[\]'"]+)
      | (?P<other>\S.*)""",
    re.VERBOSE | re.DOTALL,
)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LISTED = 8  # names
_GRAMMAR = (
    "conditions such as partition.alpha=0.1, or an algorithm, joined by 'and'; "
    "= != < <= > >=, or in [a, b]"
)


@dataclass(frozen=True)
class Condition:
    """One comparison of a key."""

    key: str
    sign: str
    value: Any

    def holds(self, value: Any) -> bool:
        """Return True if a run whose key has this value is selected."""
        if self.sign == "in":
            return any(_equal(value, choice) for choice in self.value)
        if self.sign in _ORDER:
            return _is_number(value) and _ORDER[self.sign](value, self.value)
        return _equal(value, self.value) == (self.sign == "=")


def parse(text: str) -> tuple[Condition, ...]:
    """Parse the conditions of a filter; ConfigError names the part that cannot be read."""
    tokens, conditions = _Tokens(text), []
    try:
        while not conditions or tokens.take(",", "and"):
            conditions.append(_condition(tokens))
    except RecursionError:
        raise tokens.error("its lists are nested too deeply") from None
    if tokens.rest:
        raise tokens.error(f"'{tokens.rest[0][1]}' is left over")
    return tuple(conditions)


def select(runs: pd.DataFrame, conditions: Iterable[Condition]) -> pd.DataFrame:
    """Select the runs for which every condition holds; ConfigError for a key that no run has."""
    for condition in conditions:
        check_key(condition.key, runs.columns)
        runs = runs.loc[[condition.holds(null_if_missing(v)) for v in runs[condition.key]]]
    return runs


def check_key(key: str, known: Iterable[str]) -> None:
    """Raise ConfigError with the closest key if no run has this key."""
    names = list(known)
    if key in names:
        return
    named = {name.rpartition(".")[2]: name for name in names} | {name: name for name in names}
    close = difflib.get_close_matches(key, named, n=1)
    hint = f" (did you mean '{named[close[0]]}'?)" if close else ""
    section = f"{key.partition('.')[0]}."
    inside = [name for name in names if name.startswith(section)]
    there = sorted(inside or {name.partition(".")[0] + ".*" * ("." in name) for name in names})
    closest = difflib.get_close_matches(key, there, n=_LISTED, cutoff=0)  # most of many are metrics
    more = f", and {len(there) - len(closest)} more" if len(there) > len(closest) else ""
    raise ConfigError(f"{key}: no run has this key{hint}; the closest: {', '.join(closest)}{more}")


def null_if_missing(value: Any) -> Any:
    """Convert a cell of a frame of runs: NaN, which stands for a missing key, becomes None."""
    return None if isinstance(value, float) and value != value else value


class _Tokens:
    """The tokens of a filter that are still to be parsed: pairs of kind and text."""

    def __init__(self, text: str):
        self._text = text
        self.rest = [(str(match.lastgroup), match[0]) for match in _TOKEN.finditer(text)]
        if self.rest and self.rest[-1][0] == "other":
            raise self.error(f"'{self.rest[-1][1].strip()}' cannot be read")

    def error(self, what: str) -> ConfigError:
        return ConfigError(f"filter {shown(self._text)}: {what}; a filter is {_GRAMMAR}")

    def next(self, expected: str) -> tuple[str, str]:
        if not self.rest:
            raise self.error(f"it ends where {expected} should follow")
        return self.rest.pop(0)

    def begins_with(self, *expected: str) -> bool:
        """Return True if the next token is one of these, and no quoted text."""
        return bool(self.rest) and self.rest[0][0] != "text" and self.rest[0][1] in expected

    def take(self, *expected: str) -> bool:
        """Consume the next token and return True if it is one of these."""
        found = self.begins_with(*expected)
        del self.rest[:found]
        return found


def _condition(tokens: _Tokens) -> Condition:
    kind, key = tokens.next("a key")
    if kind != "word":
        raise tokens.error(f"{key} stands where a key should")
    if ":" in key or ("." not in key and (not tokens.rest or tokens.begins_with(",", "and"))):
        return Condition("algorithm.name", "=", key)
    _, sign = tokens.next("one of = != < <= > >= in")
    if sign not in (*_ORDER, "=", "==", "!=", "in"):
        raise tokens.error(f"'{sign}' stands where one of = != < <= > >= in should")
    value = _value(tokens, key)
    if sign in _ORDER and not _is_number(value):
        raise tokens.error(f"{key} {sign} {shown(value)} must compare with a number")
    if sign == "in" and not isinstance(value, tuple):
        raise tokens.error(f"{key} in {shown(value)} must have a list, such as [0.1, 0.3]")
    return Condition(key, "=" if sign == "==" else sign, value)


def _value(tokens: _Tokens, key: str) -> Any:
    kind, text = tokens.next("a value")
    if kind == "text":
        return text[1:-1]
    if text == "[":
        values = []
        while not tokens.take("]"):
            if values and not tokens.take(","):
                raise tokens.error("a list lacks a comma or its ']'")
            values.append(_value(tokens, key))
        return tuple(values)
    if kind == "sign":
        raise tokens.error(f"'{text}' stands where a value should")
    try:
        return _hashable(plain(parse_value(text), key))
    except ValueError as error:
        raise tokens.error(f"{key} {text}: is not valid YAML ({error})") from None


def stored_value(text: str) -> Any:
    """Return a recorded parameter, which is JSON or else text; lists as tuples."""
    try:
        return _hashable(json.loads(text))
    except ValueError:
        return text


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(a: Any, b: Any) -> bool:
    # Python holds True == 1; a config does not.
    return isinstance(a, bool) == isinstance(b, bool) and a == b
