"""What all trials share: the data, in the object store once, and the partitions."""

import json
from dataclasses import dataclass
from typing import Any

from rayfl.config.schema import Experiment
from rayfl.runtime.placement import Placement


@dataclass(frozen=True)
class SharedInputs:
    """Made by the driver, which owns the objects: they outlive every trial."""

    data: dict[str, tuple[Any, Any]]
    """References to dataset and partition, by `data_key`; equal datasets are one object."""
    placement: Placement
    """Of the client actors of one trial."""


def data_key(experiment: Experiment) -> str:
    """Experiments with the same key have the same data, split in the same way."""
    sections = {"data", "partition", "heterogeneity", "seed"}
    content = experiment.model_dump(mode="json", include=sections)
    return json.dumps([content, experiment.federation.clients], sort_keys=True)


def source_key(experiment: Experiment) -> str:
    """Experiments with the same key read the same data."""
    return json.dumps(experiment.model_dump(mode="json", include={"data"}), sort_keys=True)
