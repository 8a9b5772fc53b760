"""The layers of a config: files that extend each other, then overrides -> one plain mapping.

Later layers win key by key. If a layer changes the `name` of a section, the options that the new name also
has stay, and the others are dropped with a warning. A layer that gives one of two alternatives drops the
other.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rayfl.config import shipped
from rayfl.config.values import parse_value, parse_yaml, plain
from rayfl.errors import ConfigError
from rayfl.text import nearest, printable, shown

Layer = dict[str, Any]
"""Part of a config: nested sections of JSON's types."""
Has = Callable[[Any, str], bool | None]
"""`(name, key)`: whether sections of that name have that key; None if there is no such name."""
Named = Mapping[str, Has]
"""The `Has` of each section with a `name`, by its dotted key."""

ALTERNATIVES = (("local_epochs", "local_steps"),)
_AVERAGES = (*combinations(("last", "ema", "swa"), 2), ("last", "every"), ("ema", "every"))

logger = logging.getLogger(__name__)


def read(path: Path, named: Named, extended_by: tuple[Path, ...] = ()) -> Layer:
    """Read a config file on top of the file that its `extends` names, relative to its own directory."""
    if path.resolve() in [file.resolve() for file in extended_by]:
        circle = " -> ".join(file.name for file in (*extended_by, path))
        raise ConfigError(f"the files extend each other: {circle}", "extends", path.name)
    where = f"config file {shown(str(path))}" + (
        f", which {shown(str(extended_by[-1]))} extends" if extended_by else ""
    )
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
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
    return extended(content, path, named, extended_by)


def extended(content: Layer, path: Path, named: Named, extended_by: tuple[Path, ...] = ()) -> Layer:
    """Put what stands in the file `path` on top of the file that its `extends` names, if it has one."""
    base = content.pop("extends", None)
    if base is None:
        return plain(content)
    if not isinstance(base, str):
        allowed = f"the path of a config file, relative to '{path.name}'"
        raise ConfigError(key="extends", value=base, allowed=allowed)
    file = shipped.find(base, path.parent)
    return merge(read(file, named, (*extended_by, path)), plain(content), named)


def parse_overrides(overrides: Sequence[str]) -> Layer:
    """Return one layer of all `section.key=value` texts: no override drops what another one gives."""
    layer: Layer = {}
    for override in overrides:
        layer = join(layer, _parse_override(override))
    return layer


def join(first: Layer, second: Layer) -> Layer:
    """Join two layers; the second wins only where both give a value."""
    joined = dict(first)
    for key, value in second.items():
        old = joined.get(key)
        joined[key] = (
            join(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return joined


def nested(values: Mapping[str, Any]) -> Layer:
    """Return the layer of values by their dotted keys: `{"a.b": 1}` becomes `{"a": {"b": 1}}`."""
    layer: Layer = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        layer = join(layer, value)
    return layer


def merge(base: Layer, layer: Layer, named: Named, path: str = "") -> Layer:
    """Put `layer` on top of `base`; `path`: the dotted key of both."""
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        is_ramp = isinstance(value, dict) and "from" in value  # a whole one, which replaces another
        if isinstance(old, dict) and isinstance(value, dict) and not is_ramp:
            inner = f"{path}.{key}".lstrip(".")
            value = merge(_kept(old, value, named, inner), value, named, inner)
        merged[key] = value
    return merged


def _kept(old: Layer, new: Layer, named: Named, path: str) -> Layer:
    """Return the keys of an old section that stay under a new one."""
    replaced = {
        key
        for pair in (*ALTERNATIVES, *_AVERAGES)
        for key, other in (pair, pair[::-1])
        if key not in new and new.get(other) is not None
    }
    if path in named and old.get("name", new.get("name")) != new.get("name", old.get("name")):
        replaced |= _dropped(old, new, named[path], path)
    return {key: value for key, value in old.items() if key not in replaced}


def _dropped(old: Layer, new: Layer, has: Has, path: str) -> set[str]:
    """Return the options that a section's new name does not have; log them, and those that stay."""
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
        say_once(
            f"{path}.name = {shown(new['name'])}, not {shown(old['name'])}: {'; '.join(words)}"
        )
    return set(dropped)


@functools.cache
def say_once(message: str) -> None:
    """Log a message once: hundreds of points of a sweep say the same."""
    logger.warning(message)


def _parse_override(override: str) -> Layer:
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"override {shown(override)}: must look like algorithm.rho=0.05")
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ConfigError(f"override {shown(override)}: is not valid YAML ({error})") from None
    dotted = ".".join(parts)
    return nested({dotted: plain(value, printable(dotted))})
