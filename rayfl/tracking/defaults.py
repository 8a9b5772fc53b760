"""Addresses of MLflow stores. Importing this does not import mlflow, which takes seconds."""

import functools
import logging
import os
from pathlib import Path
from urllib.parse import unquote

from rayfl.text import redacted

VARIABLE = "MLFLOW_TRACKING_URI"
"""Environment variable with the address of the store; see `store_address`."""

logger = logging.getLogger(__name__)


def store_address(uri: str | None, key: str) -> tuple[str, str]:
    """Return the store's address, and the name of what it comes from.

    That is `uri`, given by the option `key`; else the environment variable MLFLOW_TRACKING_URI, which is said
    once; else, for `key` too, the default. Empty text counts as nothing.
    """
    if uri:
        return uri, key
    if found := os.environ.get(VARIABLE, "").strip():
        _say_once(f"MLflow store: {redacted(found)} ({VARIABLE})")
        return found, VARIABLE
    return default_uri(), key


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s", text)


def default_uri() -> str:
    """Return the absolute address of the sqlite file in the working directory."""
    return sqlite_uri(Path.cwd() / "mlflow.db")


def sqlite_uri(file: Path) -> str:
    """Return the address of an absolute path."""
    path = str(file)
    quoted = path.replace("%", "%25").replace(
        "?", "%3F"
    )  # escape the characters with a meaning in a URL
    # For an escaped sqlite:/// address, MLflow would create a directory of the escaped name.
    return f"{'sqlite' if quoted == path else 'sqlite+pysqlite'}:///{quoted}"


def database_file(uri: str) -> Path | None:
    """Return the file of a sqlite address, or None for other addresses (a database in memory too)."""
    driver, separator, path = uri.partition(":///")
    path = unquote(path.partition("?")[0])
    if not separator or driver not in ("sqlite", "sqlite+pysqlite"):
        return None
    return None if path in ("", ":memory:") or path.startswith("file:") else Path(path)
