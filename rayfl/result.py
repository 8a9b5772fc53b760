"""A run as its caller sees it: what is known at its start, and what it gives."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
import torch

from rayfl.prepared import Prepared
from rayfl.storage.checkpoint_writer import CheckpointWriter

if TYPE_CHECKING:
    from rayfl.runtime.placement import Placement


@dataclass(frozen=True)
class Result:
    """History, summary and final model of a run."""

    history: pd.DataFrame
    """One row a round; see `History.frame`."""
    summary: dict[str, float]
    """Numbers of the whole run; see `History.summary`."""
    clients: pd.DataFrame | None
    """Each client's `samples` and the `accuracy` of the final model on its own distribution (index
    `client`); None if `evaluation.per_client` is off, or if no round was left to go on with."""
    state_dict: dict[str, torch.Tensor] = field(repr=False)
    """Final parameters, for `load_state_dict` of the plain model."""
    model_sha256: str
    """Digest of the final w."""
    run_id: str | None
    """MLflow run; None if tracking is off."""
    average_state_dict: dict[str, torch.Tensor] | None = field(default=None, repr=False)
    """Final average of the global models; None without `evaluation.average`, or before its first model."""


@dataclass(frozen=True)
class Start:
    """Everything that is known before the actors start."""

    prepared: Prepared
    placement: "Placement | str"
    run_id: str | None
    ui_command: str | None
    page: str | None
    """Address of the run's page, once `ui_command` runs."""
    resumed_round: int
    """Round of the checkpoint that it goes on from, or 0."""
    checkpoints: CheckpointWriter | None
    """Writer of its checkpoints; None: it writes none."""
