"""The base of all models: the option that each has, and the method that builds it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """The options of a model, a frozen dataclass that can build it."""

    init: Annotated[
        str | None,
        Field(
            description="weights to start from, all of which must fit: runs:/ID, the path of a checkpoint "
            "or of a run's folder, or a state dict (.pt or .safetensors); null: fresh ones"
        ),
    ] = None
    """Read by `rayfl.warm_start`, not by `build`."""

    @abstractmethod
    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """A freshly initialised model."""
