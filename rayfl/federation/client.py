"""Executor of an experiment's work units, in whichever process it is."""

import functools
import os
import traceback
from typing import Any

import torch

from rayfl.errors import ClientError
from rayfl.federation.specs import ClientSpec
from rayfl.training.batches import as_tensor
from rayfl.training.client_measures import alignment, end_of, variance
from rayfl.training.engine import Engine
from rayfl.training.function import Function, Shortcuts
from rayfl.training.objective import SampleObjective, answer, probe_samples
from rayfl.training.personal import evaluate_personal
from rayfl.training.precision import in_effect
from rayfl.training.replay import replay
from rayfl.training.travel import unpacked
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
    UnitResult,
    WorkUnit,
)


class Client:
    """Holds an engine, and nothing that a result depends on."""

    def __init__(
        self, spec: ClientSpec, device: str = "cpu", share: float = 1.0, pinned: bool = False
    ):
        """`share`, `pinned`: as `Engine`."""
        self.name, self._model = spec.name, spec.model
        self.engine = Engine(
            unpacked(spec.model),
            spec.algorithm,
            spec.dataset,
            spec.partition,
            spec.settings,
            device,
            share,
            pinned,
        )

    def describe(self) -> dict[str, Any]:
        """The process, device, engine and arithmetic that compute; `kernels`: why none are fused.

        `processor`: what the last bits depend on, the GPU's name or a CPU's vector instructions.
        """
        device = self.engine.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        return {
            "pid": os.getpid(),
            "device": name,
            "processor": torch.backends.cpu.get_cpu_capability() if name == "cpu" else name,
            "engine": str(self.engine),
            "kernels": self.engine.unfused or "",
            "precision": in_effect(self.engine.settings.precision, device),
        }

    def train(
        self, unit: WorkUnit, broadcast: Broadcast, memories: list[Arrays | None]
    ) -> tuple[UnitResult, list[Arrays]]:
        """Execute a work unit: its result, and each client's new memory. Raises ClientError."""
        try:
            return self.engine.train(unit, broadcast, memories)
        except Exception as error:
            raise self._error(unit.round, unit.clients) from error

    def evaluate(
        self, round: int, broadcast: Broadcast, split: Split, first: int, last: int
    ) -> EvaluationResult:
        """Evaluate the split's samples `first` to `last`. Raises ClientError."""
        try:
            return self.engine.evaluate(broadcast, split, first, last)
        except Exception as error:
            raise self._error(round, ()) from error

    def probe(self, round: int, probe: Probe, point: Broadcast, vectors: Arrays) -> ProbeResult:
        """Answer a probe around `point.start`; `vectors`: `vectors [j, P]`. Raises ClientError."""
        try:
            return answer(self._probed(point, probe), probe, as_tensor(vectors["vectors"]))
        except Exception as error:
            raise self._error(round, ()) from error

    def probe_client(
        self,
        probe: ClientProbe,
        point: Broadcast,
        broadcast: Broadcast,
        memory: Arrays | None,
        vectors: Arrays,
    ) -> ClientProbeResult:
        """Answer a question about one client (see `ClientProbe`). Raises ClientError."""
        engine, unit = self.engine, probe.unit
        try:
            samples = probe_samples(
                engine.partition.client(unit.clients[0]), probe.samples, unit.clients[0]
            )
            objective = self._probed(point, Probe("gradient", "train", samples))
            named = (as_tensor(vectors[name]) for name in ("gradient", "tops"))
            gradient, tops = (vector.to(engine.device) for vector in named)
            again = replay(engine, unit, broadcast, memory, gradient[0])
            if probe.measure == "end":
                return end_of(again)
            if probe.measure == "alignment":
                return alignment(objective, again, probe, gradient[0], tops)
            return variance(objective, again, probe, engine.settings.batch_size)
        except Exception as error:
            raise self._error(unit.round, unit.clients) from error

    def personal(self, asked: Personal, point: Broadcast, memory: Arrays | None) -> PersonalResult:
        """Evaluate a client's own model (see `evaluate_personal`). Raises ClientError."""
        try:
            return evaluate_personal(self.engine, asked, point, memory)
        except Exception as error:
            raise self._error(asked.round, (asked.client,)) from error

    def _probed(self, point: Broadcast, probe: Probe) -> SampleObjective:
        w, buffers, samples = map(as_tensor, (point.start, point.buffers, probe.samples))
        device, engine = self.engine.device, self.engine
        data = engine.train_data if probe.split == "train" else engine.test_data
        return SampleObjective(
            self._differentiable, data, samples.to(device), w.to(device), buffers.to(device)
        )

    @functools.cached_property
    def _differentiable(self) -> Function:
        """The model as PyTorch computes it: the engine's faster ways have no second derivative."""
        model, ways = unpacked(self._model).to(self.engine.device), self.engine.settings.shortcuts
        plain = Shortcuts(channels_last=ways.channels_last, shares_inputs=ways.shares_inputs)
        return plain.function(model, self.engine.settings.task)

    def _error(self, round: int, clients: tuple[int, ...]) -> ClientError:
        return ClientError(round, clients, self.name, traceback.format_exc())
