"""The model of a run as others load it: the state dict of the plain architecture, and what it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayfl import models
from rayfl.config.schema import Experiment
from rayfl.models.files import safetensors_of, write_state_dict
from rayfl.training.flat import Layout


@dataclass(frozen=True)
class Weights:
    """Named tensors of a model after a round."""

    tensors: dict[str, Tensor]
    """Parameters and buffers, adapters merged, for `load_state_dict` of the plain model."""
    about: dict[str, Any]
    """The config's hash, its section `model`, the round, and the average if it is one."""

    @classmethod
    def of(
        cls,
        config: Experiment,
        model: nn.Module,
        flat: tuple[np.ndarray, np.ndarray],
        round: int,
        average: bool = False,
    ) -> "Weights":
        """Write w `[P]` and the buffers `[Q]`, together `flat`, into `model`, and take them out by name."""
        w, buffers = flat
        Layout(model).load(model, torch.tensor(w), torch.tensor(buffers))
        tensors = {name: v.clone() for name, v in models.plain_state_dict(model).items()}
        dumped = config.model_dump(mode="json")
        about = {"config_hash": config.hash, "model": dumped["model"], "round": round}
        if average:
            about["average"] = dumped["evaluation"]["average"]
        return cls(tensors, about)

    def write(self, path: Path) -> None:
        """Write a .safetensors file, or a .pt file without the metadata. Raises OSError."""
        write_state_dict(path, self.tensors, self._metadata)

    def safetensors(self) -> bytes:
        """Return the content of a .safetensors file."""
        return safetensors_of(self.tensors, self._metadata)

    @property
    def _metadata(self) -> dict[str, str]:
        # One entry: safetensors writes several in any order, and equal models are to be equal files.
        return {"rayfl": json.dumps(self.about)}
