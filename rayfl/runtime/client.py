"""The client actor: a Ray actor that executes any work unit of an experiment."""

from typing import Any

import ray
import torch

from rayfl.federation.client import Client
from rayfl.federation.specs import ClientSpec
from rayfl.training.engine import Arrays, Broadcast, EvaluationResult, Split, WorkUnit
from rayfl.training.process import configure_process


class ClientActor:
    """A client in a process of its own."""

    def __init__(self, threads: int, gpu_fraction: float, *spec: Any):
        """Set up the process for its share of the machine; `spec`: fields of `ClientSpec`."""
        configure_process(threads)
        self.device = "cuda" if gpu_fraction > 0 else "cpu"
        if 0 < gpu_fraction < 1:
            # Ray's fraction only counts; this makes it a cap on the device's memory.
            torch.cuda.set_per_process_memory_fraction(gpu_fraction)
        self.begin(*spec)

    def begin(self, *spec: Any) -> None:
        """Make the client of an experiment, in place of the one before; `spec`: fields of `ClientSpec`."""
        self.client = Client(ClientSpec(*spec), self.device)

    def describe(self) -> dict[str, Any]:
        """The node, process, device, engine and arithmetic of this client actor, once it is ready."""
        return {"node": ray.util.get_node_ip_address(), **self.client.describe()}

    def train(self, unit: WorkUnit, broadcast: Broadcast, *memories: Arrays | None) -> Any:
        """Execute a work unit: its result, then each client's new memory (see `ActorPool.train`)."""
        result, new = self.client.train(unit, broadcast, list(memories))
        return (result, *new) if self.client.engine.remembers else result

    def evaluate(
        self, round: int, broadcast: Broadcast, split: Split, first: int, last: int
    ) -> EvaluationResult:
        """Evaluate the split's samples `first` to `last`."""
        return self.client.evaluate(round, broadcast, split, first, last)
