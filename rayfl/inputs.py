"""Inputs that several experiments share: each dataset and each partition is made once."""

import json
from dataclasses import dataclass, field
from typing import Any

from rayfl.config.schema import Experiment
from rayfl.data.datasets import Dataset
from rayfl.data.federated import federate
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError
from rayfl.federation.specs import UnitsPerRound
from rayfl.prepare import prepare
from rayfl.prepared import Prepared


@dataclass
class Inputs:
    """Datasets and partitions of all experiments, in this process."""

    data: dict[str, tuple[Dataset, Partition]] = field(default_factory=dict)
    """Dataset and partition, by `data_key`."""
    _sources: dict[str, Dataset] = field(default_factory=dict)
    _units: dict[str, UnitsPerRound] = field(default_factory=dict)
    _problems: dict[str, ConfigError] = field(default_factory=dict)

    def of(self, experiment: Experiment) -> tuple[Dataset, Partition]:
        return self.data[data_key(experiment)]

    def units(self, experiment: Experiment) -> UnitsPerRound:
        """Return the number of work units in a round. Raises ConfigError if the experiment is invalid."""
        # `prepare` is called once for all experiments that differ only in values that it does not use.
        used = {"data", "partition", "heterogeneity", "model", "federation", "privacy", "seed"}
        used |= {"algorithm", "evaluation"}
        content = experiment.model_dump(mode="json", include=used)
        # A method counts by its name and by words, such as that of a head; numbers do not.
        method = content["algorithm"]
        content["algorithm"] = {key: word for key, word in method.items() if isinstance(word, str)}
        for key in ("lr", "lr_schedule", "lr_decay", "weight_decay", "clip_norm"):
            content["federation"].pop(key)
        key = json.dumps(content, sort_keys=True)
        if key not in self._units:
            self._units[key] = self.prepare(experiment).federation.units_per_round
        return self._units[key]

    def prepare(self, experiment: Experiment) -> Prepared:
        """Prepare an experiment. Raises ConfigError if it is invalid."""
        return prepare(experiment, *self._made(experiment))

    def _made(self, experiment: Experiment) -> tuple[Dataset, Partition]:
        source = json.dumps(experiment.model_dump(mode="json", include={"data"}), sort_keys=True)
        data = self._once(self._sources, source, experiment.data.load)
        return self._once(
            self.data,
            data_key(experiment),
            lambda: federate(
                data,
                experiment.partition,
                experiment.heterogeneity,
                experiment.federation.clients,
                experiment.seed,
                experiment.data.validation,
            ),
        )

    def _once(self, made: dict[str, Any], key: str, make: Any) -> Any:
        if key in self._problems:  # do not try again to read missing data, which may take long
            raise self._problems[key]
        if key not in made:
            try:
                made[key] = make()
            except ConfigError as error:
                self._problems[key] = error
                raise
        return made[key]


def data_key(experiment: Experiment) -> str:
    """Return a key that is the same for experiments with the same data and the same partition."""
    sections = {"data", "partition", "heterogeneity", "seed"}
    content = experiment.model_dump(mode="json", include=sections)
    return json.dumps([content, experiment.federation.clients], sort_keys=True)
