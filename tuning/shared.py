"""What all trials share: the data, in the object store once, and the partitions."""

import json
from dataclasses import dataclass
from typing import Any

from rayfl.config import Experiment
from rayfl.runtime.cluster import Placement


@dataclass(frozen=True)
class Shared:
    """Made by the driver, which owns the objects: they outlive every trial."""

    datasets: dict[str, Any]
    """References, by `data_key`."""
    partitions: dict[str, Any]
    """References, by `partition_key`."""
    placement: Placement
    """Of the client actors of one trial."""

    def of(self, experiment: Experiment) -> tuple[Any, Any]:
        """References to the dataset and the partition of an experiment."""
        dataset = self.datasets[data_key(experiment)]
        return dataset, self.partitions[partition_key(experiment)]


def data_key(experiment: Experiment) -> str:
    """Experiments with the same key have the same data."""
    return _key(experiment, "data")


def partition_key(experiment: Experiment) -> str:
    """Experiments with the same key have the same partition."""
    return json.dumps(
        [_key(experiment, "data", "partition"), experiment.federation.clients, experiment.seed]
    )


def _key(experiment: Experiment, *sections: str) -> str:
    return json.dumps(experiment.model_dump(mode="json", include=set(sections)), sort_keys=True)
