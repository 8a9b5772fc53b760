"""The complete state of a server after a round, as checkpoints keep it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Memory(NamedTuple):
    """Memory of one client."""

    round: int
    """Last round of the client."""
    fetch: Callable[[], Arrays]
    """Function that reads the arrays."""


@dataclass(frozen=True)
class Snapshot:
    """State of a server after `round` rounds."""

    round: int
    tensors: Arrays
    """Arrays `w`, `buffers`, `server/<name>`, `average/<name>` and, after a round, its mean update `[P]`,
    `last_delta`."""
    memories: dict[int, Memory]
    """Client id -> memory."""

    @property
    def server(self) -> Arrays:
        """The algorithm's server state, by its names."""
        return self._under("server/")

    @property
    def average(self) -> Arrays:
        """The kept state of the average of global models, by its names."""
        return self._under("average/")

    def _under(self, prefix: str) -> Arrays:
        return {
            name.removeprefix(prefix): array
            for name, array in self.tensors.items()
            if name.startswith(prefix)
        }
