"""The engine executes work units: it trains the clients of one unit, or evaluates a piece of a data set.

It holds what every unit needs (model, data, algorithm) and nothing that a result depends on: the same
unit gives the same bits in any process of one device type.
"""

import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl import seeds
from rayfl.algorithms.base import Algorithm, ExperimentInfo, Vectors
from rayfl.algorithms.noise import ClientNoise
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.training.batches import (
    BatchSchedule,
    DeviceData,
    as_tensor,
    batch_schedule,
    client_steps,
    steps_per_round,
)
from rayfl.training.cuda_graphs import GraphedSteps, cuda_graphs
from rayfl.training.flat import Layout
from rayfl.training.function import Shortcuts
from rayfl.training.gradients import BatchedMLP, PerClientGradient, VmapGradient
from rayfl.training.local import SGD, LocalStep, Trained, train_stack
from rayfl.training.precision import Precision, local_steps

Arrays = dict[str, np.ndarray]
# What a model is evaluated on: the test set, or the training samples that are held out.
Split = Literal["test", "validation"]

# On a CPU larger batches are no faster, and their maps are memory that the process keeps.
EVALUATION_BATCH = {"cpu": 125, "cuda": 500}
# A stack of more parameters than this outgrows the processor's cache and loses what stacking gained;
# a GPU has no such limit but its memory.
STACK_PARAMETERS = {"cpu": 800_000, "cuda": 200_000_000}


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """Settings of local training, the same for all clients."""

    seed: int
    batch_size: int
    local_epochs: int | None
    local_steps: int | None
    weight_decay: float
    clip_norm: float | None
    precision: Precision
    augment: str
    straggler_prob: float  # probability that a client of a round takes fewer steps
    stack: int | None  # clients that train at once, at most; None: chosen by the engine
    cuda_graphs: bool  # record local steps as CUDA graphs where possible; changes no result
    shortcuts: Shortcuts  # faster ways to compute that change no result


class WorkUnit(NamedTuple):
    """Some clients of one round: what a client actor executes at a time."""

    round: int
    clients: tuple[int, ...]
    lr: float


class Broadcast(NamedTuple):
    """Vectors that travel down, float32."""

    start: np.ndarray  # `[P]`
    shared: Arrays  # `[P]` or `[1]` each
    buffers: np.ndarray  # `[Q]`

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors."""
        return sum(v.nbytes for v in (self.start, self.buffers, *self.shared.values()))


class UnitResult(NamedTuple):
    """Sums and measurements of a work unit; the clients' memories travel beside it."""

    # Each upload summed over the unit's clients in their order; `buffers [Q]` among them.
    sums: Arrays
    losses: np.ndarray  # `[C]`, mean training loss of each client
    drifts: np.ndarray  # `[C]`, L2 norm of each client's delta
    steps: int  # local steps of all clients together
    backward_passes: int
    seconds: float


class EvaluationResult(NamedTuple):
    """Loss and hits of the model on a piece of a split."""

    loss: float  # summed over the samples
    correct: np.ndarray  # bool `[m]`, true where the prediction was right


class Engine:
    """Executes work units on one device."""

    def __init__(
        self,
        model: nn.Module,
        algorithm: Algorithm,
        dataset: Dataset,
        partition: Partition,
        settings: LocalSettings,
        device: str,
    ):
        self.device = torch.device(device)
        self.function = settings.shortcuts.function(model.to(self.device))
        self.model, self.layout = self.function.model, self.function.layout
        self.algorithm, self.partition, self.settings = algorithm, partition, settings
        self.remembers = bool(algorithm.init_client(torch.zeros(self.layout.size)))
        self.train_data = DeviceData(dataset, "train", self.device)
        self.test_data = DeviceData(dataset, "test", self.device)
        self._evaluated: dict[Split, tuple[DeviceData, Tensor]] = {
            "test": (self.test_data, torch.arange(len(self.test_data), device=self.device)),
            "validation": (self.train_data, as_tensor(partition.validation).to(self.device)),
        }
        self.oracle = self._oracle()
        on_gpu = self.device.type == "cuda"
        self.records = settings.cuda_graphs and on_gpu and self.oracle.recordable
        self.graphed: GraphedSteps | None = None
        self.experiment = experiment_info(self.layout, partition, settings)

    @torch.no_grad()
    def train(
        self, unit: WorkUnit, broadcast: Broadcast, memories: list[Arrays | None]
    ) -> tuple[UnitResult, list[Arrays]]:
        """Train the unit's clients, given each client's memory (None: its first round)."""
        began = time.perf_counter()
        self.model.train()
        # A copy: matrix kernels may round differently for memory that is aligned differently.
        start = torch.tensor(broadcast.start, device=self.device)
        shared = {name: torch.tensor(v, device=self.device) for name, v in broadcast.shared.items()}
        size = self._stack_size(len(unit.clients))
        sums: Vectors = {}
        losses, drifts, kept, steps, passes = [], [], [], 0, 0
        for first in range(0, len(unit.clients), size):
            clients = unit.clients[first : first + size]
            memory = self._memory(memories[first : first + size], start)
            buffers = torch.tensor(broadcast.buffers, device=self.device)
            schedules = [self.schedule(unit.round, client) for client in clients]
            trained = self._train_stack(unit, clients, schedules, start, shared, memory, buffers)
            if trained.memory.keys() != memory.keys():
                raise ValueError(
                    f"upload returned the memory {sorted(trained.memory)}, "
                    f"but init_client names {sorted(memory)}: the names must stay the same"
                )
            uploads = trained.uploads | {"buffers": buffers.unsqueeze(0)}
            for name, value in uploads.items():
                summed = value.sum(0) if len(value) > 1 else value[0]
                sums[name] = sums[name] + summed if name in sums else summed
            losses.append(trained.losses)
            drifts.append(torch.linalg.vector_norm(trained.uploads["delta"], dim=-1))
            kept += [
                {name: _to_numpy(value[c]) for name, value in trained.memory.items()}
                for c in range(len(clients))
            ]
            steps += sum(len(p.sizes) for p in schedules)
            passes += trained.backward_passes
        result = UnitResult(
            sums={name: _to_numpy(value) for name, value in sums.items()},
            losses=_to_numpy(torch.cat(losses)),
            drifts=_to_numpy(torch.cat(drifts)),
            steps=steps,
            backward_passes=passes,
            seconds=time.perf_counter() - began,
        )
        return result, kept

    @torch.no_grad()
    def evaluate(
        self, broadcast: Broadcast, split: Split, first: int, last: int
    ) -> EvaluationResult:
        """Loss of the split's samples `first` to `last` at `broadcast.start`, and which it gets right."""
        self.model.eval()
        # Some models draw random numbers here too: the same ones, whoever evaluates these samples.
        torch.manual_seed(seeds.integer(self.settings.seed, "model", 0, first))
        start = torch.tensor(broadcast.start, device=self.device)
        buffers = torch.tensor(broadcast.buffers, device=self.device)
        tensors = self.function.parameters(start) | self.function.buffers(buffers)
        loss, correct = 0.0, []
        data, samples = self._evaluated[split]
        for indices in samples[first:last].split(EVALUATION_BATCH[self.device.type]):
            inputs = self.function.inputs(data.preprocess(indices, None, None))
            outputs = self.function(tensors, inputs).to(start.dtype)
            targets = data.y[indices]
            loss += F.cross_entropy(outputs, targets, reduction="sum").item()
            correct.append(_to_numpy(outputs.argmax(-1) == targets))
        return EvaluationResult(loss, np.concatenate(correct))

    def _oracle(self) -> BatchedMLP | VmapGradient | PerClientGradient:
        precision = self.settings.precision
        # Autocast has no say over the hand-written backward pass.
        if self.settings.shortcuts.dense and precision != "bfloat16":
            return BatchedMLP(self.function)
        kind = VmapGradient if (self.settings.stack or 1) > 1 else PerClientGradient
        return kind(self.function, precision)

    def __str__(self) -> str:
        """Describe the local steps: "PerClientGradient, CUDA graphs", "BatchedMLP of at most 4"."""
        kind = type(self.oracle).__name__
        size = f" of at most {self._most}" if self.oracle.stacks else ""
        return kind + size + (", CUDA graphs" if self.records else "")

    @property
    def _most(self) -> int:
        """Clients that train at once, at most."""
        if self.settings.stack is not None:
            return self.settings.stack
        if not self.oracle.stacks:
            return 1
        return max(1, STACK_PARAMETERS[self.device.type] // self.layout.size)

    def _stack_size(self, clients: int) -> int:
        """Clients that are trained at once, in stacks as equal as can be."""
        return -(-clients // -(-clients // self._most))

    def schedule(self, round: int, client: int) -> BatchSchedule:
        samples, s = self.partition.client(client), self.settings
        steps = steps_per_round(len(samples), s.batch_size, s.local_epochs, s.local_steps)
        steps = client_steps(steps, s.straggler_prob, s.seed, round, client)
        padding = self.train_data.padding
        return batch_schedule(
            samples, s.batch_size, steps, s.seed, round, client, s.augment, padding
        )

    def _memory(self, memories: list[Arrays | None], w: Tensor) -> Vectors:
        """The clients' memories as one stack, `[C, P]` each."""
        first = {} if all(memories) else self.algorithm.init_client(w)
        rows = [
            {name: as_tensor(v).to(self.device) for name, v in memory.items()} if memory else first
            for memory in memories
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _train_stack(
        self,
        unit: WorkUnit,
        clients: tuple[int, ...],
        schedules: list[BatchSchedule],
        start: Tensor,
        shared: Vectors,
        memory: Vectors,
        buffers: Tensor,
    ) -> Trained:
        """Train one stack; `buffers` is updated in place."""
        s = self.settings
        if isinstance(self.oracle, PerClientGradient):
            self.oracle.begin_client(buffers)
            # Layers that draw random numbers (dropout) use torch's global generator.
            torch.manual_seed(seeds.integer(s.seed, "model", unit.round, clients[0]))
        batches = self.train_data.batches(schedules)
        sgd = SGD(lr=unit.lr, weight_decay=s.weight_decay, clip_norm=s.clip_norm)
        step = LocalStep(self.algorithm, self.oracle, sgd, self.experiment)
        if self.records and self.graphed is None:
            self.graphed = GraphedSteps(step, cuda_graphs())
        steps = [len(p.sizes) for p in schedules]
        noise = ClientNoise(s.seed, unit.round, clients, steps)
        with local_steps(s.precision):
            return train_stack(
                step, batches, start, shared, memory, steps, self.graphed, noise, unit.round
            )


def experiment_info(
    layout: Layout, partition: Partition, settings: LocalSettings
) -> ExperimentInfo:
    """Facts that are the same for all clients and rounds."""
    return ExperimentInfo(
        samples=tuple(partition.sizes.tolist()),
        batch_size=settings.batch_size,
        local_epochs=settings.local_epochs,
        local_steps=settings.local_steps,
        tensors=tuple(layout.parameters),
    )


def _to_numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().contiguous().numpy()
