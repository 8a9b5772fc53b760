"""The one grammar of values: YAML, in files, overrides and filters, and JSON's types as the result."""

import io
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rayfl.errors import ConfigError
from rayfl.text import one_line, printable

_LARGEST_INTEGER = 2**63 - 1
_DEEPEST = 20


class _Constructor(SafeConstructor):
    """YAML's plain types, where text that looks like a date stays text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str) -> Any:
    """Parse a YAML document. Raises ValueError, which says what is wrong and in which line."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{one_line(error.problem)}{line}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(one_line(error)) from None


def parse_value(text: str) -> Any:
    """Parse the value of an override or a filter: YAML, or the text itself where it is none.

    Raises ValueError for a list, a section or a quoted text that is broken.
    """
    try:
        return parse_yaml(text)
    except ValueError:
        if text.lstrip()[:1] in tuple("[{\"'"):
            raise
        return text


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return the content as a YAML file, one key a line."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(content, stream)
    return stream.getvalue()


def plain(value: Any, key: str = "") -> Any:
    """Return the value in JSON's types. ConfigError names the dotted key of a value that has none."""
    if key.count(".") > _DEEPEST:
        raise ConfigError("sections and lists are nested too deeply", key.partition(".")[0])
    if isinstance(value, str):
        _check_text(key, value)
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        if abs(int(value)) > _LARGEST_INTEGER:
            raise ConfigError(key=key, value=int(value), allowed="less than 2^63")
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise ConfigError(key=key, value=float(value), allowed="a finite number")
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{key}.{i}") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for inner in value:
            if not isinstance(inner, str):
                raise ConfigError(f"has the key {inner!r}; keys must be text", key or "config")
            _check_text(f"{key or 'config'}: a key", inner)
        prefix = f"{key}." if key else ""
        return {k: plain(item, prefix + printable(k)) for k, item in value.items()}
    kinds = "a number, text, true, false, null, a list or a section"
    raise ConfigError(key=key, value=value, allowed=kinds)


def _check_text(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that its encoding does not have
        hint = "does the shell's locale (LC_ALL) say so?"
        raise ConfigError(key=key, value=text, allowed="text in UTF-8", hint=hint) from None
