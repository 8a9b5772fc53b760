"""The client actor: a Ray actor that executes any work unit of an experiment."""

import contextlib
import os
import traceback
from collections.abc import Iterator
from typing import Any

import ray
import torch

from rayfl.federation.client import Client
from rayfl.federation.pool import without_sums
from rayfl.federation.specs import ClientSpec
from rayfl.training.process import configure_process
from rayfl.training.units import (
    Arrays,
    Broadcast,
    ClientProbe,
    ClientProbeResult,
    EvaluationResult,
    Personal,
    PersonalResult,
    Probe,
    ProbeResult,
    Split,
    WorkUnit,
)

# About what a process's context, libraries and recordings take of a GPU.
CONTEXT_BYTES = 1 << 30


class ClientActor:
    """A client in a process of its own."""

    def __init__(self, threads: int, gpu_fraction: float, *spec: Any):
        """Set up the process for its share of the machine; `spec`: fields of `ClientSpec`."""
        configure_process(threads)
        self.device, self.share = ("cuda", gpu_fraction) if gpu_fraction > 0 else ("cpu", 1.0)
        if 0 < gpu_fraction < 1:
            # Ray's fraction only counts; this makes it a cap on the device's memory, less what the
            # process's context takes, which torch does not count.
            total = torch.cuda.get_device_properties(0).total_memory
            cap = max(gpu_fraction / 2, gpu_fraction - CONTEXT_BYTES / total)
            torch.cuda.set_per_process_memory_fraction(cap)
        self.begin(*spec)

    def begin(self, *spec: Any) -> None:
        """Make the client of an experiment, in place of the one before; `spec`: fields of `ClientSpec`."""
        with ended_if_broken(self.device):
            # Pinned: Ray copies what a client returns to the object store before it calls it again.
            self.client = Client(ClientSpec(*spec), self.device, self.share, pinned=True)

    def describe(self) -> dict[str, Any]:
        """The node, process, device, engine and arithmetic of this client actor, once it is ready."""
        return {
            "node": ray.util.get_node_ip_address(),
            "node_id": ray.get_runtime_context().get_node_id(),
            **self.client.describe(),
        }

    def train(self, unit: WorkUnit, broadcast: Broadcast, *memories: Arrays | None) -> Any:
        """Execute a work unit: its result, then each client's new memory (see `ActorPool.train`)."""
        with ended_if_broken(self.device):
            result, new = self.client.train(unit, broadcast, list(memories))
        return (result, *new) if self.client.engine.remembers else result

    def train_apart(self, unit: WorkUnit, broadcast: Broadcast, *memories: Arrays | None) -> Any:
        """Do as `train`, but return the sums apart, as the second object, which stays on this node."""
        with ended_if_broken(self.device):
            result, new = self.client.train(unit, broadcast, list(memories))
        kept = new if self.client.engine.remembers else ()
        return (without_sums(result), result.sums, *kept)

    def add(self, left: Arrays, right: Arrays) -> Any:
        """Add two sums: nothing, then their sum, which stays on this node."""
        return None, {name: value + right[name] for name, value in left.items()}

    def evaluate(
        self, round: int, broadcast: Broadcast, split: Split, first: int, last: int
    ) -> EvaluationResult:
        """Evaluate the split's samples `first` to `last`."""
        with ended_if_broken(self.device):
            return self.client.evaluate(round, broadcast, split, first, last)

    def personal(self, asked: Personal, point: Broadcast, memory: Arrays | None) -> PersonalResult:
        """Evaluate a client's own model (see `Client.personal`)."""
        with ended_if_broken(self.device):
            return self.client.personal(asked, point, memory)

    def probe(self, round: int, probe: Probe, point: Broadcast, vectors: Arrays) -> ProbeResult:
        """Answer a probe (see `Client.probe`)."""
        with ended_if_broken(self.device):
            return self.client.probe(round, probe, point, vectors)

    def probe_client(self, probe: ClientProbe, *given: Any) -> ClientProbeResult:
        """Answer a question about one client (see `Client.probe_client`)."""
        with ended_if_broken(self.device):
            return self.client.probe_client(probe, *given)


@contextlib.contextmanager
def ended_if_broken(device: str) -> Iterator[None]:
    """End the process after an error that leaves its GPU of no use, as one that has died.

    Such an error (a fault of the hardware, a lost device) is no fault of the experiment, and all that the
    process would compute from now on would fail, too: its work unit runs again elsewhere.
    """
    try:
        yield
    except Exception:
        if device == "cuda" and not _answers():
            traceback.print_exc()
            os._exit(1)
        raise


def _answers() -> bool:
    """True if the GPU still computes."""
    try:
        return torch.ones(2, device="cuda").sum().item() == 2
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False
