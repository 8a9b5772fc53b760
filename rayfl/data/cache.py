"""Decoded images on disk, so that the next run need not decode them again.

An entry is named after a digest of all that its arrays follow from, so it cannot be out of date. The
checksums of the .npz format tell a whole entry from a damaged one, which is as good as none. Nothing here
ends a run.
"""

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rayfl.text import absolute

UNUSED_DAYS = 30
"""An entry that was not read for so long can go."""


def folder() -> Path | None:
    """Directory of the entries: in RAYFL_CACHE, else in the user's cache; None: nothing is kept.

    RAYFL_CACHE is a directory, or empty to keep nothing.
    """
    if (given := os.environ.get("RAYFL_CACHE")) is not None:
        return absolute(given) / "images" if given else None
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return base / "rayfl/images" if base.is_absolute() else None


def get(key: str) -> dict[str, np.ndarray] | None:
    """The arrays that were put under this key; None if there are none, or none that can be read."""
    if (directory := folder()) is None:
        return None
    entry = directory / f"{key}.npz"
    try:
        with np.load(entry, allow_pickle=False) as arrays:
            found = dict(arrays)
    except Exception:  # NumPy and zipfile have many for a file that is missing or damaged
        return None
    with contextlib.suppress(OSError):  # it may be another user's
        os.utime(entry)
    return found


def put(key: str, pixels: np.ndarray, animated: np.ndarray) -> None:
    """Keep these arrays by their names, if that is possible; others see a whole entry or none."""
    if (directory := folder()) is None:
        return
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(".part", dir=directory)
        try:
            with open(handle, "wb") as file:
                np.savez(file, pixels=pixels, animated=animated)
            os.replace(part, directory / f"{key}.npz")
        except BaseException:
            os.unlink(part)
            raise


class Usage(NamedTuple):
    """Files of the cache."""

    directory: Path | None
    size: int
    """Bytes of all."""
    unused: dict[Path, int]
    """Bytes of each that was not read for `UNUSED_DAYS`."""

    @classmethod
    def now(cls) -> "Usage":
        """List the files that are there."""
        directory, since = folder(), time.time() - UNUSED_DAYS * 24 * 3600
        found: dict[Path, os.stat_result] = {}
        with contextlib.suppress(OSError):
            for file in os.scandir(directory) if directory else ():
                with contextlib.suppress(OSError):  # another process has replaced it
                    found[Path(file.path)] = file.stat()
        unused = {path: s.st_size for path, s in found.items() if s.st_mtime < since}
        return cls(directory, sum(status.st_size for status in found.values()), unused)

    def delete(self) -> int:
        """Delete what is unused, and return the bytes that this freed."""
        freed = 0
        for path, size in self.unused.items():
            with contextlib.suppress(OSError):  # it may be another user's
                path.unlink()
                freed += size
        return freed
