"""Files of clients' memories in a run's folder: one for each client and version of its memory.

A version is named by the client's last round. A file that a kept checkpoint names is never deleted here.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import load, save

from rayfl.errors import CheckpointError, first_line
from rayfl.storage.manifest import WrittenFile, check_content, written_file
from rayfl.storage.snapshot import Arrays
from rayfl.storage.storage import Storage

FOLDER = "memories"
# Files that only checkpoints need, over all others, from which on the next checkpoint is due.
MOST_OUTDATED = 0.1


class MemoryFiles:
    """Memories of clients in the folder of a run, written once each."""

    def __init__(self, location: str):
        self.location = location
        self.written: dict[str, WrittenFile] = {}
        """Files of this run that are known to be whole."""
        self.needed: frozenset[str] = frozenset()
        """Names of the files of the checkpoints that are kept; see `need`."""
        self.holds_memories = False
        """True once memories are in files alone."""
        self._outdated: set[str] = set()

    @functools.cached_property
    def _storage(self) -> Storage:
        return Storage(self.location)

    def write(self, name: str, arrays: Arrays) -> None:
        """Write a memory. Raises OSError if that is not possible."""
        content = encoded(arrays)
        self._storage.write(name, content)
        self.written[name] = written_file(content)

    def read(self, name: str) -> Arrays:
        """Return a memory. Raises CheckpointError if its file is not what was written."""
        try:
            content = self._storage.read(name)
            check_content(self.written[name], content)
        except OSError as error:
            raise CheckpointError(
                f"{self.location}: {name}, a client's memory, is damaged ({first_line(error)}); go on from "
                "an older checkpoint-*.json with --resume, if there is one"
            ) from error
        return load(content)

    def delete(self, name: str) -> None:
        """Delete a memory that the run needs no more, unless a checkpoint does."""
        if name in self.needed:
            self._outdated.add(name)
        else:
            self.written.pop(name, None)
            with contextlib.suppress(OSError):  # that it is still there is no harm
                self._storage.delete(name)

    def need(self, names: Iterable[str]) -> None:
        """Take these as the files of the checkpoints that are kept."""
        self.needed = frozenset(names)
        self._outdated &= self.needed

    @property
    def piles_up(self) -> bool:
        """True if much is there that only checkpoints need."""
        most = MOST_OUTDATED * (len(self.written) - len(self._outdated))
        return self.holds_memories and len(self._outdated) > most

    def reset(self) -> None:
        """Delete what no checkpoint names, as a server that died leaves it.

        A run that goes on may give the same name another content, after other hyper-parameters.
        """
        self.written = {name: file for name, file in self.written.items() if name in self.needed}
        self._outdated.clear()
        for name in self._storage.sizes(FOLDER).keys() - self.needed:
            self.delete(name)


def encoded(arrays: Arrays) -> bytes:
    """Return the arrays as the content of a safetensors file."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def memory_name(client: int, round: int) -> str:
    """Return the name of the file of a client's memory of its last round."""
    return f"{FOLDER}/{client}-{round:08d}.safetensors"


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Folder for the memories of a run that writes no checkpoints."""
    with TemporaryDirectory(prefix="rayfl-", ignore_cleanup_errors=True) as folder:
        Storage(folder).make(FOLDER)
        yield folder
