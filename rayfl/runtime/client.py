"""The client actor: a Ray actor that executes any work unit of an experiment."""

import os
import traceback
from typing import Any

import ray
import torch

from rayfl.algorithms.base import Algorithm
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ClientError
from rayfl.training.engine import (
    Arrays,
    Broadcast,
    Engine,
    EvaluationResult,
    LocalSettings,
    WorkUnit,
)
from rayfl.training.precision import in_effect
from rayfl.training.process import configure_process
from rayfl.training.travel import unpacked


class Client:
    """Holds an engine, and nothing that a result depends on."""

    def __init__(
        self,
        threads: int,
        gpu_fraction: float,
        **experiment: Any,
    ):
        """Set up the process for its share of the machine; `experiment`: arguments of `begin`."""
        configure_process(threads)
        self.device = "cuda" if gpu_fraction > 0 else "cpu"
        if 0 < gpu_fraction < 1:
            # Ray's fraction only counts; this makes it a cap on the device's memory.
            torch.cuda.set_per_process_memory_fraction(gpu_fraction)
        self.begin(**experiment)

    def begin(
        self,
        name: str,
        model: bytes,
        algorithm: Algorithm,
        dataset: Dataset,
        partition: Partition,
        settings: LocalSettings,
    ) -> None:
        """Make the engine of an experiment, in place of the one before; `model`: as `packed`."""
        self.name = name
        self.engine = Engine(unpacked(model), algorithm, dataset, partition, settings, self.device)

    def describe(self) -> dict[str, Any]:
        """Where this client actor runs, once it is ready."""
        device = self.engine.device
        return {
            "node": ray.util.get_node_ip_address(),
            "pid": os.getpid(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "engine": str(self.engine),
            "precision": in_effect(self.engine.settings.precision, device),
        }

    def train(self, unit: WorkUnit, broadcast: Broadcast, *memories: Arrays | None) -> Any:
        """Execute a work unit: its result, then each client's new memory (see `ActorPool.train`)."""
        try:
            result, kept = self.engine.train(unit, broadcast, list(memories))
        except Exception as error:
            raise self._error(unit.round, unit.clients) from error
        return (result, *kept) if self.engine.remembers else result

    def evaluate(self, round: int, broadcast: Broadcast, first: int, last: int) -> EvaluationResult:
        """Evaluate test samples `first` to `last`."""
        try:
            return self.engine.evaluate(broadcast, first, last)
        except Exception as error:
            raise self._error(round, ()) from error

    def _error(self, round: int, clients: tuple[int, ...]) -> ClientError:
        return ClientError(round, clients, self.name, traceback.format_exc())
