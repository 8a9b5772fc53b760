"""Start a model from the weights of a run or of a file (`model.init`).

A checkpoint has its weights as one flat vector, so it fits a model of the same section `model` alone; a file
has names. A run's id is looked up in `checkpoint.dir`, as `--resume` does.
"""

import functools
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayfl.errors import CheckpointError, ConfigError, Refuse
from rayfl.models import lora
from rayfl.models.files import file_sha256, misfits, read_state_dict
from rayfl.storage import checkpoint
from rayfl.storage.checkpoint import SavedCheckpoint
from rayfl.text import absolute
from rayfl.training.flat import Layout

RUN = "runs:/"


def content_of(init: str, directory: str) -> str:
    """Return a digest of the weights that `init` names: the same wherever they lie.

    `directory`: that of all checkpoints. What is not there is returned as it is; `load` says what is wrong.
    """
    try:
        if file := _file(init):
            return f"sha256:{file_sha256(file)}"
        saved = _checkpoint(init, directory)
        return (
            f"sha256:{_state_sha256(saved.path, saved.manifest.files[saved.manifest.state].sha256)}"
        )
    except (OSError, ValueError, CheckpointError):
        return init


def load(
    model: nn.Module,
    init: str,
    directory: str,
    identity: Mapping[str, Any],
    key: str = "model.init",
) -> None:
    """Write the weights into `model`; ConfigError if they are not there or do not fit.

    `identity`: the experiment's, with dotted keys.
    """
    refuse = partial(ConfigError, key=key, value=init)
    if (file := _file(init)) is not None:
        _load_file(model, file, refuse)
        return
    try:
        saved = _checkpoint(init, directory)
        tensors = saved.snapshot().tensors
    except CheckpointError as error:
        raise refuse(
            f"no weights can be read there ({error.message}); give the file that `rayfl export` writes"
        ) from error
    here, there = (
        {k: v for k, v in keys.items() if k.startswith("model.") and k != key}
        for keys in (identity, saved.manifest.config)
    )
    differences = checkpoint.differences_of(there, here)
    w, buffers = torch.tensor(tensors["w"]), torch.tensor(tensors["buffers"])
    layout = Layout(model)
    sizes = layout.size, sum(info.size for info in layout.buffers)
    if not differences and sizes != (len(w), len(buffers)):
        differences = [
            f"{len(w):,} parameters and {len(buffers):,} numbers in buffers there, {sizes[0]:,} and "
            f"{sizes[1]:,} here, as for other samples or classes"
        ]
    if differences:
        raise refuse(
            f"a checkpoint starts only the model that it is of: {'; '.join(differences)}; give that model's "
            "options"
        )
    layout.load(model, w, buffers)


def _load_file(model: nn.Module, file: Path, refuse: Refuse) -> None:
    if lora.has_adapters(model):
        raise refuse(
            "a file has the weights of the plain model, and this one has adapters; give it as "
            "model.pretrained, which goes under the adapters, or a run with the same adapters",
            keys=("model.pretrained",),
        )
    given = read_state_dict(file, refuse, "a checkpoint, a run's folder or runs:/ID")
    if findings := misfits(model.state_dict(), given):
        raise refuse(
            f"does not fit the model; it {'; it '.join(findings)}; change the model's options, or take "
            "other weights",
            keys=("model.name",),
        )
    model.load_state_dict(given)


def _file(init: str) -> Path | None:
    """The state dict that is named; None if a run or a checkpoint is."""
    return absolute(init) if init.endswith((".safetensors", ".pt")) else None


def _checkpoint(init: str, directory: str) -> SavedCheckpoint:
    if (saved := checkpoint.named(init.removeprefix(RUN), directory)) is not None:
        return saved
    raise CheckpointError(f"there is no such checkpoint, folder or run in {directory}")


@functools.lru_cache
def _state_sha256(path: str, state_sha256: str) -> str:
    """SHA-256 of w and buffers; read once for a state file of this digest."""
    saved = checkpoint.open_named(path)
    assert saved is not None
    tensors = saved.snapshot().tensors
    return hashlib.sha256(tensors["w"].tobytes() + tensors["buffers"].tobytes()).hexdigest()
