"""Functions of the user's own that a config names by their import path."""

from collections.abc import Callable
from typing import Any

from rayfl.config.choice import import_path
from rayfl.errors import ConfigError
from rayfl.text import shown


def own_function(path: str | None, key: str) -> Callable[..., Any] | None:
    """Return the function at `package.module:function`, or None if none is named; see `named_function`."""
    return None if path is None else named_function(path, key)


def named_function(path: str, key: str) -> Callable[..., Any]:
    """Return the function at `package.module:function`.

    Raises ConfigError, which names the dotted config key `key`, if there is none.
    """
    found = import_path(path, key)
    if not callable(found):
        raise ConfigError(f"is no function, but {shown(found)}", key, path)
    return found
