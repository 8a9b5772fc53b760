"""Inputs that the trials of a sweep share, in the object store."""

from dataclasses import dataclass
from typing import Any

from rayfl.runtime.placement import Placement


@dataclass(frozen=True)
class SharedInputs:
    """References to the inputs in the object store. The driver owns them, so they outlive every trial."""

    data: dict[str, tuple[Any, Any]]
    """References to dataset and partition, by `data_key`. Equal datasets are one object."""
    placement: Placement
    """Placement of the client actors of one trial."""
    memory_bytes: int
    """Bytes of the object store for the clients' memories of one trial."""
