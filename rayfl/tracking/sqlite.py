"""The file of a sqlite store: made whole or not at all, and used by one process while it may change.

MLflow makes and migrates its tables in many steps, without a lock: two processes that do so at once, or one
that is killed, leave a file that nobody can open.
"""

import contextlib
import glob
import logging
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from rayfl.errors import first_line
from rayfl.tracking.defaults import sqlite_uri

NOTICE_SECONDS = 5.0
"""Time that a lock is waited for in silence."""
PATIENCE_SECONDS = 120.0
"""Time that a lock is waited for at all; to make a store takes some seconds."""
_QUIET_SECONDS = 5.0
_CONTENT = ("runs", "registered_models", "trace_info")  # tables of which MLflow itself fills none

logger = logging.getLogger(__name__)


class StoreFileError(Exception):
    """A store's file is unusable; says why, and what to do, in one line."""


@contextlib.contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Keep other processes of rayfl from opening the store; yields False where there can be no lock.

    The operating system frees the lock of a process that dies.
    """
    lock, is_held = FileLock(f"{file}.lock"), True
    try:
        with open(lock.lock_file, "a"):  # filelock would try again and again
            pass
        try:
            lock.acquire(timeout=NOTICE_SECONDS)
        except Timeout:
            logger.warning("waiting for another process to open %s (%s.lock)", file, file)
            lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout as error:
        raise StoreFileError(
            f"another process has held {file}.lock for {PATIENCE_SECONDS:.0f} s; end that process, or give "
            "another file"
        ) from error
    except (OSError, NotImplementedError):  # read-only, or a file system that has no locks
        is_held = False
    try:
        yield is_held
    finally:
        if is_held:
            lock.release()


def ensure(file: Path, is_locked: bool, writes: bool) -> None:
    """Make the store if there is none, in a directory that is made too. Raises StoreFileError as `check`."""
    if check(file, writes):
        return
    try:
        make(file, is_locked)
    except OSError as error:
        raise _cannot(error) from error


def check(file: Path, writes: bool) -> bool:
    """See that sqlite can open the store, for which MLflow would try for 100 s; whether there is one.

    `writes`: it must be possible to make it or to write to it, too. Raises StoreFileError.
    """
    try:
        if not file.exists() or (file.is_file() and file.stat().st_size == 0):
            with tempfile.TemporaryFile(dir=next(p for p in file.absolute().parents if p.exists())):
                return False
        tables = _tables(file, writes)
    except (OSError, sqlite3.Error) as error:
        raise _cannot(error) from error
    if tables and not tables & {"experiments", "alembic_version"}:
        raise StoreFileError(
            f"is a database of something else (its tables: {', '.join(sorted(tables)[:5])}); give "
            "another file"
        )
    return True


def _cannot(error: Exception) -> StoreFileError:
    why = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return StoreFileError(f"cannot be opened or made ({why}); give another file")


def make(file: Path, is_locked: bool) -> None:
    """Have MLflow make an empty store beside the file, and move it there once it is whole."""
    prefix, suffix = f".{file.name}.", ".new"
    if is_locked:  # left by processes that were killed
        for path in file.parent.glob(f"{glob.escape(prefix)}*{suffix}*"):
            path.unlink(missing_ok=True)
    new = file.with_name(f"{prefix}{secrets.token_hex(4)}{suffix}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        new.touch(exist_ok=False)  # an OSError here, where MLflow would try again and again
        from mlflow.tracking import MlflowClient  # takes seconds; `check` does without

        MlflowClient(sqlite_uri(new.absolute())).search_experiments(max_results=1)
        if not file.exists() or file.stat().st_size == 0:  # without a lock, another may be faster
            os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)


def remake(file: Path) -> bool:
    """Replace a store that MLflow cannot open, if it was left while it was made; return whether it was.

    Such a store has no content, and nobody is at work on it.
    """
    try:
        if not _is_empty(file):
            return False
        while (idle := time.time() - file.stat().st_mtime) < _QUIET_SECONDS:
            time.sleep(max(0.1, _QUIET_SECONDS - idle))
        if not _is_empty(file):
            return False
        aside = file.with_name(f"{file.name}.unfinished")
        shutil.copy(file, aside)
        whole = file.with_name(f".{file.name}.{secrets.token_hex(4)}.whole")
        try:
            make(whole, is_locked=False)
            # Into the same file: MLflow keeps connections to it.
            with (
                contextlib.closing(_connect(whole)) as source,
                contextlib.closing(_connect(file, writes=True)) as target,
            ):
                source.backup(target)
        finally:
            whole.unlink(missing_ok=True)
    except (OSError, sqlite3.Error):
        return False
    logger.warning("%s was left half-made, without a run: made anew (the old one: %s)", file, aside)
    return True


def _tables(file: Path, writes: bool = False) -> set[str]:
    with contextlib.closing(_connect(file, writes)) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if writes:
            if not os.access(file.parent, os.W_OK):  # of the journal
                raise PermissionError(0, f"{file.parent} is read-only")
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    return {name for (name,) in found}


def _connect(file: Path, writes: bool = False) -> sqlite3.Connection:
    mode = "rw" if writes else "ro"
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=20)


def _is_empty(file: Path) -> bool:
    """Return True if the store has no run, no model, no trace, and no experiment but MLflow's default."""
    most = {"experiments": 1, **dict.fromkeys(_CONTENT, 0)}
    there = _tables(file) & most.keys()
    with contextlib.closing(_connect(file)) as connection:
        counts = {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in there
        }
    return all(count <= most[name] for name, count in counts.items())
