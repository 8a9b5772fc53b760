"""Settings of local training, and what algorithms are told of the experiment."""

from dataclasses import dataclass

from rayfl.algorithms.base import ExperimentInfo
from rayfl.data.partition import Partition
from rayfl.training.flat import Layout
from rayfl.training.function import Shortcuts
from rayfl.training.precision import Precision
from rayfl.training.privacy import GaussianMechanism
from rayfl.training.task import CLASSES, Task
from rayfl.training.weighting import Weighting


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """Settings of local training, the same for all clients."""

    seed: int
    batch_size: int
    local_epochs: int | None
    local_steps: int | None
    weight_decay: float
    momentum: float = 0.0
    nesterov: bool = False
    clip_norm: float | None
    precision: Precision
    augment: str
    weighting: Weighting = "uniform"  # of clients in the cohort's mean
    privacy: GaussianMechanism | None = None  # bound and noise of the uploads
    straggler_prob: float  # probability that a client of a round takes fewer steps
    stack: int | None  # clients that train at once, at most; None: chosen by the engine
    cuda_graphs: bool  # record local steps as CUDA graphs where possible; changes no result
    lanes: int | None = None  # clients that train beside each other on a GPU; None: as many as fit
    keeps_outputs: bool = False  # evaluations return the model's outputs, too; changes no result
    task: Task = CLASSES
    shortcuts: Shortcuts  # faster ways to compute that change no result


def experiment_info(
    layout: Layout, partition: Partition, settings: LocalSettings
) -> ExperimentInfo:
    """Facts that are the same for all clients and rounds."""
    return ExperimentInfo(
        samples=partition.sizes,
        batch_size=settings.batch_size,
        local_epochs=settings.local_epochs,
        local_steps=settings.local_steps,
        tensors=tuple(layout.parameters),
    )
