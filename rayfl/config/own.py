"""Functions of the user's own that a config names by their import path."""

from collections.abc import Callable
from typing import Any

from rayfl.config.choice import import_path


def own_function(path: str | None, key: str) -> Callable[..., Any] | None:
    """Return the function at `package.module:function`, or None if none is named.

    Raises ConfigError, which names the dotted config key `key`, if there is none.
    """
    return None if path is None else import_path(path, key)
