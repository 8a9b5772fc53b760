"""Names in a config -> the dataclass that holds the options of that name.

Algorithms, data sources, partitions and models each have a registry: a plain dict from a name to a
frozen dataclass. A name of the form `package.module:Name` is imported instead.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from rayfl.errors import ConfigError


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """` (did you mean 'x'?)` for the known word closest to `word`, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def lookup(registry: Mapping[str, type], name: str, key: str) -> Any:
    """The class registered as `name`, or the object at the import path `package.module:Name`.

    Raises ConfigError, which names the dotted config key `key`, if there is no such thing.
    """
    if ":" in name:
        return _import(name, key)
    if name not in registry:
        raise ConfigError(
            f"{key} = {name!r}: unknown name{nearest(name, registry)}; "
            f"allowed: {', '.join(sorted(registry))}, or an import path 'package.module:Name'"
        )
    return registry[name]


def _import(path: str, key: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key} = {path!r}: cannot be imported ({error}); "
            "give 'package.module:Name' of a module that is installed or in the working directory"
        ) from error
