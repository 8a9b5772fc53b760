"""The travelling vectors that one device keeps: the last broadcast, and memories of clients.

A vector of a large model takes milliseconds on its way to a GPU, and a unit's clients need many.
"""

import numpy as np
import torch
from torch import Tensor

from rayfl.algorithms.base import Vectors
from rayfl.training.batches import as_tensor
from rayfl.training.units import Arrays, Broadcast, WorkUnit


class DeviceBroadcast:
    """The last broadcast. A device that keeps it has it once, in the same memory every time."""

    def __init__(self, device: torch.device, keeps: bool):
        self._device, self._keeps = device, keeps
        self._key: bytes | None = None
        self.start = self.buffers = torch.empty(0)
        self.shared: Vectors = {}

    def load(self, broadcast: Broadcast) -> None:
        """Bring the broadcast here, unless it is here already."""
        if self._keeps and self._key is not None and self._key == broadcast.key:
            return
        self._key = broadcast.key
        self.start = self._placed(broadcast.start, self.start)
        self.buffers = self._placed(broadcast.buffers, self.buffers)
        own = {name: self.shared.get(name) for name in broadcast.shared}
        placed = {name: self._placed(v, own[name]) for name, v in broadcast.shared.items()}
        # One for evaluation alone has no shared vectors; their memory stays for the next round.
        self.shared = self.shared | placed if self._keeps else placed

    def _placed(self, array: np.ndarray, place: Tensor | None) -> Tensor:
        if not self._keeps or place is None or place.shape != array.shape:
            # A copy: matrix kernels may round differently for memory that is aligned differently.
            return torch.tensor(array, device=self._device)
        return place.copy_(as_tensor(array))

    def own(self) -> tuple[Tensor, Tensor]:
        """Start `[P]` and buffers `[Q]` for passes that may change them, as some models do."""
        vectors = self.start, self.buffers
        return (vectors[0].clone(), vectors[1].clone()) if self._keeps else vectors

    def owns(self, value: Tensor) -> bool:
        """True if the tensor lies in the memory of the broadcast."""
        at = value.untyped_storage().data_ptr()
        return any(
            at == v.untyped_storage().data_ptr() for v in (self.start, *self.shared.values())
        )


class DeviceMemories:
    """Memories of clients that trained here last, as far as they fit; the longest unused go first."""

    def __init__(self, device: torch.device, most_bytes: int):
        self._device, self._most, self._bytes = device, most_bytes, 0
        self._kept: dict[tuple[bytes, int], Vectors] = {}

    def get(self, key: tuple[bytes, int]) -> Vectors | None:
        """The memory with this key; it is used up, for the client's next one replaces it."""
        memory = self._kept.pop(key, None)
        self._bytes -= _bytes(memory or {})
        return memory

    def stacked(
        self, unit: WorkUnit, stack: slice, memories: list[Arrays | None], first: Vectors
    ) -> Vectors:
        """The memories of a stack of the unit's clients, `[C, P]` each: those kept here, or as they came.

        `first`: the memory of a client that has none yet.
        """
        given = memories[stack]
        rows: list[Vectors] = []
        names = unit.memories[stack] or (None,) * len(given)
        for client, name, memory in zip(unit.clients[stack], names, given, strict=True):
            here = None if name is None else self.get((name, client))
            if here is None and memory:
                here = {key: as_tensor(v).to(self._device) for key, v in memory.items()}
            rows.append(first if here is None else here)
        # A copy, too: how an array from the object store is aligned is nothing that a result may depend on.
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def keep(self, key: tuple[bytes, int], memory: Vectors) -> None:
        """Keep a memory, whose tensors are no one else's."""
        self._kept[key] = memory
        self._bytes += _bytes(memory)
        while self._bytes > self._most:
            self.get(next(iter(self._kept)))


def to_host(values: Vectors, pinned: bool) -> Arrays:
    """The tensors as arrays; `pinned`: in memory that a GPU reaches directly, for what is soon gone."""
    if not pinned:
        return {name: _array(value) for name, value in values.items()}
    placed = {
        name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(
            value, non_blocking=True
        )
        for name, value in values.items()
    }
    torch.cuda.current_stream().synchronize()
    return {name: value.numpy() for name, value in placed.items()}


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().contiguous().numpy()


def _bytes(memory: Vectors) -> int:
    return sum(value.nbytes for value in memory.values())
