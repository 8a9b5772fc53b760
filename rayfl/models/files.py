"""Files of weights: a state dict of tensors and nothing else, so that none can run code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayfl.errors import Refuse, first_line

SUFFIXES = (".safetensors", ".pt")
"""Of the files that are written."""


def read_state_dict(path: Path, refuse: Refuse, other: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or one of `torch.save`.

    Raises what `refuse` makes of a message; `other`: what else may be given.
    """
    if not path.is_file():
        raise refuse(f"no such file; give a state dict, {other}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is none of these makes torch raise
        raise refuse(
            f"cannot be read as tensors alone ({first_line(error)}); save the model's "
            "state_dict() with torch.save or safetensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise refuse(
            "must hold a state dict, names and their tensors, nothing around it; save "
            "the model's state_dict() itself"
        )
    return dict(found)


def write_state_dict(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a state dict in the format that the path's suffix names, one of `SUFFIXES`.

    `about`: metadata of a .safetensors file; the other format has no place for it. Raises OSError.
    """
    if path.suffix == ".safetensors":
        path.write_bytes(safetensors_of(tensors, about))
    else:
        torch.save(dict(tensors), path)


def safetensors_of(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Return a state dict as a .safetensors file has it."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(about))
