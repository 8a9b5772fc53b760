"""Write the model of a run to a file that PyTorch opens without rayfl."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rayfl.config.schema import Experiment
from rayfl.diagnostics.subjects import LAST, find
from rayfl.errors import ConfigError
from rayfl.federation.averaging import Average
from rayfl.models.files import SUFFIXES
from rayfl.prepare import built
from rayfl.prepared import averaging
from rayfl.provenance import Provenance
from rayfl.storage.checkpoint import before_the_run
from rayfl.storage.snapshot import Snapshot
from rayfl.weights import Weights


def export(
    what: str,
    output: str | Path,
    overrides: Sequence[str] = (),
    *,
    average: bool = False,
    uri: str | None = None,
) -> Weights:
    """Write the model of a run to a .safetensors or a .pt file, and return it.

    `what`, `overrides`, `uri`: as `rayfl.diagnostics.flatness` has them. `average`: the average of
    `evaluation.average` instead. Raises ConfigError, and OSError where the file cannot be written.
    """
    path = Path(output)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            key="--output", value=str(path), allowed=f"a file {' or '.join(SUFFIXES)}"
        )
    subject = find(what, [LAST], overrides, uri)
    config, saved = subject.config, subject.checkpoints[-1]
    data = config.data.load()
    with before_the_run():
        saved.check_provenance(Provenance(data.digest, config.code()))
        flat = _flat(config, saved.snapshot(), average)
    weights = Weights.of(config, built(config, data), flat, saved.round, average)
    weights.write(path)
    return weights


def _flat(config: Experiment, state: Snapshot, average: bool) -> tuple[np.ndarray, np.ndarray]:
    """The state's w `[P]` and buffers `[Q]`, or their average."""
    w, buffers = state.tensors["w"], state.tensors["buffers"]
    if not average:
        return w, buffers
    if (rule := averaging(config)) is None:
        raise ConfigError(
            "is null, so the run has kept no average of its models; leave --average out, or give it as an "
            "override if the run was found by a path, which does not tell it",
            key="evaluation.average",
        )
    kept = Average(rule, torch.tensor(w), torch.tensor(buffers))
    kept.restore(state.average, state.round)
    if (averaged := kept.model()) is None:
        raise ConfigError(
            f"--average: its first model is that after round {rule.first}, and this is round {state.round}"
        )
    return averaged[0].numpy(), averaged[1].numpy()
