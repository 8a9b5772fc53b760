"""Files of weights: a state dict of tensors and nothing else, so that none can run code."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayfl.errors import Refuse, first_line

SUFFIXES = (".safetensors", ".pt")
"""Suffixes of the files that are written."""


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


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Say what keeps a given state dict from a model whose own is `own`; empty: nothing."""
    shapes = {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    return [
        *_listed("lacks", own.keys() - given.keys()),
        *_listed("has, but the model has not,", given.keys() - own.keys()),
        *_listed("has another shape of", shapes),
    ]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is read anew if its time or its size changes. Raises OSError."""
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _sha256(path: Path, modified: int, size: int) -> str:
    """SHA-256 of a file; read once as long as neither its time nor its size changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(verb: str, names: set[str]) -> list[str]:
    """`lacks a, b, c and 4 more`, or nothing."""
    first, rest = sorted(names)[:3], len(names) - 3
    return [f"{verb} {', '.join(first)}{f' and {rest} more' if rest > 0 else ''}"] if names else []
