"""The layers of a config: files that extend each other, then overrides -> one plain mapping.

Later layers win key by key. Where a layer changes the `name` of a section, the options that the new name
has too stay; what has to go is said. A layer that gives one of two alternatives takes the other back.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rayfl.config import shipped
from rayfl.errors import ConfigError
from rayfl.text import nearest, one_line, printable, shown

Layer = dict[str, Any]
Has = Callable[[Any, str], bool | None]
"""`(name, key)`: whether sections of that name have that key; None if there is no such name."""
Named = Mapping[str, Has]
"""Of each section with a `name`, by its dotted key."""

ALTERNATIVES = (("local_epochs", "local_steps"),)

_LARGEST_INTEGER = 2**63 - 1
_DEEPEST = 20

logger = logging.getLogger(__name__)


class _Constructor(SafeConstructor):
    """YAML's plain types; what looks like a date stays text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def read(path: Path, named: Named, extended_by: tuple[Path, ...] = ()) -> Layer:
    """A config file on top of the file that its `extends` names, relative to its own directory."""
    if path.resolve() in [file.resolve() for file in extended_by]:
        circle = " -> ".join(file.name for file in (*extended_by, path))
        raise ConfigError(f"extends = '{path.name}': the files extend each other: {circle}")
    where = f"config file {shown(str(path))}" + (
        f", which {shown(str(extended_by[-1]))} extends" if extended_by else ""
    )
    try:
        content = _parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        similar = nearest(path.name, [f.name for f in path.parent.glob("*.y*ml")], cutoff=0.8)
        hint = similar or shipped.similar(path)
        raise ConfigError(f"{where}: there is no such file{hint}") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: must be UTF-8 text ({error})") from None
    except ValueError as error:
        raise ConfigError(f"{where}: is not valid YAML ({error})") from None
    if not isinstance(content, dict):
        found = "it is empty" if content is None else f"it holds {shown(content)}"
        raise ConfigError(f"{where}: must hold sections such as 'federation:', but {found}")
    base = content.pop("extends", None)
    if base is None:
        return plain(content)
    if not isinstance(base, str):
        raise ConfigError(
            f"extends = {shown(base)}: must be the path of a config file, relative to '{path.name}'"
        )
    file = shipped.find(base, path.parent)
    return merge(read(file, named, (*extended_by, path)), plain(content), named)


def parse_overrides(overrides: Sequence[str]) -> Layer:
    """One layer from all `section.key=value` texts: no override drops what another one gives."""
    layer: Layer = {}
    for override in overrides:
        layer = join(layer, _parse_override(override))
    return layer


def join(first: Layer, second: Layer) -> Layer:
    """Both as one layer: nothing of the first goes, but for values that the second gives too."""
    joined = dict(first)
    for key, value in second.items():
        old = joined.get(key)
        joined[key] = (
            join(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return joined


def merge(base: Layer, layer: Layer, named: Named, path: str = "") -> Layer:
    """`base` with `layer` on top; `path`: the dotted key of both."""
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            inner = f"{path}.{key}".lstrip(".")
            value = merge(_kept(old, value, named, inner), value, named, inner)
        merged[key] = value
    return merged


def plain(value: Any, key: str = "") -> Any:
    """The value in JSON's types. ConfigError names the dotted key of what has none."""
    if key.count(".") > _DEEPEST:
        raise ConfigError(f"{key.partition('.')[0]}: sections and lists are nested too deeply")
    if isinstance(value, str):
        _check_text(key, value)
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        if abs(int(value)) > _LARGEST_INTEGER:
            raise ConfigError(f"{key} = {shown(int(value))}: must be less than 2^63")
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise ConfigError(f"{key} = {shown(float(value))}: must be a finite number")
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{key}.{i}") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for inner in value:
            if not isinstance(inner, str):
                raise ConfigError(f"{key or 'config'}: has the key {inner!r}; keys must be text")
            _check_text(f"{key or 'config'}: a key", inner)
        prefix = f"{key}." if key else ""
        return {k: plain(item, prefix + printable(k)) for k, item in value.items()}
    raise ConfigError(
        f"{key} = {shown(value)}: must be a number, text, true, false, null, a list or a section"
    )


def _check_text(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that its encoding does not have
        raise ConfigError(
            f"{key} = {shown(text)}: must be text in UTF-8; does the shell's locale (LC_ALL) say so?"
        ) from None


def _kept(old: Layer, new: Layer, named: Named, path: str) -> Layer:
    """What stays of an old section under a new one."""
    replaced = {
        key
        for pair in ALTERNATIVES
        for key, other in (pair, pair[::-1])
        if key not in new and new.get(other) is not None
    }
    if path in named and old.get("name", new.get("name")) != new.get("name", old.get("name")):
        replaced |= _dropped(old, new, named[path], path)
    return {key: value for key, value in old.items() if key not in replaced}


def _dropped(old: Layer, new: Layer, has: Has, path: str) -> set[str]:
    """The options that a section's new name does not have; says so, and what stays."""
    shared = {key: has(new["name"], key) for key in old if key != "name" and key not in new}
    if None in shared.values():  # a name that is going to be refused
        return set()
    kept, dropped = ([key for key in shared if shared[key] is is_kept] for is_kept in (True, False))
    words = [
        f"{verb} {', '.join(f'{printable(key)} = {shown(old[key])}' for key in keys)}"
        for verb, keys in (("keeps", kept), ("drops", dropped))
        if keys
    ]
    if words:
        _say(f"{path}.name = {shown(new['name'])}, not {shown(old['name'])}: {'; '.join(words)}")
    return set(dropped)


@functools.cache
def _say(message: str) -> None:
    """Once: hundreds of points of a sweep say the same."""
    logger.warning(message)


def _parse_override(override: str) -> Layer:
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"override {shown(override)}: must look like algorithm.rho=0.05")
    try:
        value = _parse(text)
    except ValueError as error:
        if text.lstrip()[:1] in tuple("[{\"'"):
            raise ConfigError(f"override {shown(override)}: is not valid YAML ({error})") from None
        value = text
    layer = plain(value, printable(".".join(parts)))
    for part in reversed(parts):
        layer = {part: layer}
    return layer


def _parse(text: str) -> Any:
    """A YAML document. Raises ValueError, which says what is wrong and where."""
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
