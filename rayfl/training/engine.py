"""The engine executes work units: it trains the clients of one unit, or evaluates a piece of a data set.

It holds what every unit needs (model, data, algorithm) and nothing that a result depends on: the same
unit gives the same bits in any process of one device type.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl import kernels, seeds
from rayfl.algorithms.base import Algorithm, ExperimentInfo, Vectors
from rayfl.algorithms.noise import ClientNoise
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import first_line
from rayfl.training.batches import (
    BatchSchedule,
    DeviceData,
    as_tensor,
    batch_schedule,
    client_steps,
    steps_per_round,
)
from rayfl.training.flat import Layout
from rayfl.training.function import Shortcuts
from rayfl.training.gradients import BatchedMLP, Oracle, PerClientGradient, VmapGradient
from rayfl.training.lanes import Lane, in_turns, most_lanes, recording
from rayfl.training.local import SGD, LocalStep, Trained
from rayfl.training.precision import Precision, local_steps
from rayfl.training.transfers import DeviceBroadcast, DeviceMemories, to_host
from rayfl.training.units import (
    Arrays,
    Broadcast,
    EvaluationResult,
    Split,
    UnitResult,
    WorkUnit,
)

# On a CPU larger batches are no faster, and their maps are memory that the process keeps.
EVALUATION_BATCH = {"cpu": 125, "cuda": 500}
# A stack of more parameters than this outgrows the processor's cache and loses what stacking gained;
# a GPU has no such limit but its memory.
STACK_PARAMETERS = {"cpu": 800_000, "cuda": 200_000_000}
# Of clients' memories, that a whole GPU keeps from one round of a client to its next.
KEPT_BYTES = 8 << 30
# What is done on a GPU before the first round: the first step, the second and another.
TRIAL_STEPS, TRIAL_LR = 3, 1e-3


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
    lanes: int | None = None  # clients that train beside each other on a GPU; None: as many as fit
    shortcuts: Shortcuts  # faster ways to compute that change no result


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
        share: float = 1.0,
        pinned: bool = False,
    ):
        """`share`: of the device's memory. `pinned`: whoever gets results copies them at once."""
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.unfused = (
            kernels.use(self.device) if on_gpu else None
        )  # why kernels are not fused, if so
        model = model.to(self.device)
        if on_gpu and self.unfused is None:
            model = kernels.with_group_norm(model)
        self.function = settings.shortcuts.function(model)
        self.model, self.layout = self.function.model, self.function.layout
        self.algorithm, self.partition, self.settings = algorithm, partition, settings
        self.remembers = bool(algorithm.init_client(torch.zeros(self.layout.size)))
        self.train_data = DeviceData(dataset, "train", self.device)
        self.test_data = DeviceData(dataset, "test", self.device)
        self._evaluated: dict[Split, tuple[DeviceData, Tensor]] = {
            "test": (self.test_data, torch.arange(len(self.test_data), device=self.device)),
            "validation": (self.train_data, as_tensor(partition.validation).to(self.device)),
        }
        self.experiment = experiment_info(self.layout, partition, settings)
        self.refused: str | None = None  # why steps are not recorded; None: they are
        # A kernel of the model that may add up in any order; None: there is none.
        self.varies: str | None = None
        self._share, self._pinned = share, pinned and on_gpu
        self._broadcast = DeviceBroadcast(self.device)
        self._memories = DeviceMemories(int(share * KEPT_BYTES) if on_gpu else 0)
        self._lanes = [self._lane(recorded=False)]
        self.lanes = 1  # stacks that train beside each other, at most
        if on_gpu:
            self._prepare_gpu()

    @property
    def oracle(self) -> Oracle:
        return self._lanes[0].oracle

    @property
    def recordings(self) -> int:
        """Number of recorded steps."""
        return sum(lane.graphed.recordings for lane in self._lanes if lane.graphed is not None)

    @torch.no_grad()
    def train(
        self, unit: WorkUnit, broadcast: Broadcast, memories: list[Arrays | None]
    ) -> tuple[UnitResult, list[Arrays]]:
        """Train the unit's clients, given each client's memory (None: its first round)."""
        began = time.perf_counter()
        self.model.train()
        self._broadcast.load(broadcast)
        size = self._stack_size(len(unit.clients))
        firsts = range(0, len(unit.clients), size)
        sums: Vectors = {}
        losses, drifts, kept, steps, passes = [], [], [], 0, 0
        for wave in range(0, len(firsts), self.lanes):
            stacks = [slice(first, first + size) for first in firsts[wave : wave + self.lanes]]
            for stack, trained, buffers, taken in self._train_wave(unit, stacks, memories):
                uploads = trained.uploads | {"buffers": buffers.unsqueeze(0)}
                for name, value in uploads.items():
                    summed = value.sum(0) if len(value) > 1 else value[0]
                    sums[name] = sums[name] + summed if name in sums else summed
                losses.append(trained.losses)
                drifts.append(torch.linalg.vector_norm(trained.uploads["delta"], dim=-1))
                kept += self._kept(unit, unit.clients[stack], trained.memory)
                steps += taken
                passes += trained.backward_passes
        result = UnitResult(
            sums=to_host(sums, self._pinned),
            **to_host({"losses": torch.cat(losses), "drifts": torch.cat(drifts)}, pinned=False),
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
        self._broadcast.load(broadcast)
        start = self._broadcast.start
        # A copy: no pass here may change what the clients start from.
        buffers = self._broadcast.buffers.clone()
        tensors = self.function.parameters(start) | self.function.buffers(buffers)
        losses, correct = [], []
        data, samples = self._evaluated[split]
        for indices in samples[first:last].split(EVALUATION_BATCH[self.device.type]):
            inputs = self.function.inputs(data.preprocess(indices, None, None))
            outputs = self.function(tensors, inputs).to(start.dtype)
            targets = data.y[indices]
            losses.append(F.cross_entropy(outputs, targets, reduction="sum"))
            correct.append(outputs.argmax(-1) == targets)
        # Read at the end: a GPU goes on meanwhile.
        loss = sum(torch.stack(losses).tolist())
        return EvaluationResult(loss, torch.cat(correct).cpu().numpy())

    def _lane(self, recorded: bool) -> Lane:
        """Another lane, with an oracle and buffers of its own."""
        s = self.settings
        # Autocast has no say over the hand-written backward pass.
        if s.shortcuts.dense and s.precision != "bfloat16":
            oracle: Oracle = BatchedMLP(self.function)
        else:
            kind = VmapGradient if (s.stack or 1) > 1 else PerClientGradient
            oracle = kind(self.function, s.precision)
        buffers = torch.zeros(sum(b.size for b in self.layout.buffers), device=self.device)
        step = self._step(oracle, lr=0.0)
        return recording(step, oracle, buffers) if recorded else Lane(oracle, buffers, step)

    def _step(self, oracle: Oracle, lr: float) -> LocalStep:
        s = self.settings
        sgd = SGD(lr=lr, weight_decay=s.weight_decay, clip_norm=s.clip_norm)
        return LocalStep(self.algorithm, oracle, sgd, self.experiment)

    @torch.no_grad()
    def _prepare_gpu(self) -> None:
        """Take the first steps of a client, to know what can be recorded, and how many lanes fit.

        They also load the kernels, and are no part of any result.
        """
        w, buffers = (v.to(self.device) for v in self.layout.flatten(self.model))
        start, shared = self.algorithm.broadcast(w, self.algorithm.init_server(w))
        vectors = {name: v.cpu().numpy() for name, v in shared.items()}
        broadcast = Broadcast(start.cpu().numpy(), vectors, buffers.cpu().numpy())
        client = int(self.partition.sizes.argmax())
        unit = WorkUnit(1, (client,) * (2 if self.oracle.stacks else 1), TRIAL_LR)
        self._broadcast.load(broadcast)
        before = torch.cuda.memory_reserved(self.device)
        self._try(unit)
        graphed = self._lanes[0].graphed
        if graphed is None:
            self.refused = "resources.cuda_graphs is false"
            return
        self.refused = graphed.refused
        if self.refused is None and not self.oracle.stacks:
            per_lane = torch.cuda.memory_reserved(self.device) - before
            fit = most_lanes(self.device, per_lane, self._share)
            self.lanes = fit if self.settings.lanes is None else self.settings.lanes
        elif graphed.draws:
            # Whoever draws from torch's generator must be alone: the clients' draws would mix.
            self._lanes = [self._lane(recorded=False)]

    def _try(self, unit: WorkUnit) -> None:
        """Train the unit's clients for a few steps, with kernels that give the same bits every time."""
        for warn_only in (False, True):
            torch.use_deterministic_algorithms(True, warn_only=warn_only)
            self._lanes = [self._lane(recorded=self.settings.cuda_graphs)]
            stack = slice(0, len(unit.clients))
            memories: list[Arrays | None] = [None] * len(unit.clients)
            try:
                self.model.train()
                list(self._train_wave(unit, [stack], memories, most_steps=TRIAL_STEPS))
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                return
            except RuntimeError as error:
                if warn_only or "deterministic" not in str(error):
                    raise
                self.varies = first_line(error)

    def __str__(self) -> str:
        """Describe the local steps: "PerClientGradient, CUDA graphs, 10 lanes"."""
        kind = type(self.oracle).__name__
        size = f" of at most {self._most}" if self.oracle.stacks else ""
        if self.device.type != "cuda":
            return kind + size
        graphs = "CUDA graphs" if self.refused is None else f"no CUDA graphs: {self.refused}"
        lanes = f", {self.lanes} lanes" if self.lanes > 1 else ""
        varies = f", not the same every time: {self.varies}" if self.varies else ""
        fused = f", no fused kernels: {self.unfused}" if self.unfused else ""
        return f"{kind}{size}, {graphs}{lanes}{fused}{varies}"

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

    def _memory(
        self, unit: WorkUnit, stack: slice, memories: list[Arrays | None], w: Tensor
    ) -> Vectors:
        """The clients' memories as one stack, `[C, P]` each."""
        given = memories[stack]
        first = {} if all(given) else self.algorithm.init_client(w)
        rows: list[Vectors] = []
        names = unit.memories[stack] or (None,) * len(given)
        for client, name, memory in zip(unit.clients[stack], names, given, strict=True):
            here = None if name is None else self._memories.get((name, client))
            if here is None and memory:
                here = {key: as_tensor(v).to(self.device) for key, v in memory.items()}
            rows.append(here if here is not None else first)
        if len(rows) == 1:
            return {name: value.unsqueeze(0) for name, value in rows[0].items()}
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _kept(self, unit: WorkUnit, clients: tuple[int, ...], memory: Vectors) -> list[Arrays]:
        """Each client's new memory as arrays; on a GPU it stays there, too."""
        arrays: list[Arrays] = []
        for c, client in enumerate(clients):
            row = {name: value[c] for name, value in memory.items()}
            arrays.append(to_host(row, self._pinned))
            if unit.name is not None and self.device.type == "cuda" and row:
                shared = len(clients) > 1
                own = {
                    n: v.clone() if shared or self._broadcast.owns(v) else v for n, v in row.items()
                }
                self._memories.keep((unit.name, client), own)
        return arrays

    def _train_wave(
        self,
        unit: WorkUnit,
        stacks: list[slice],
        memories: list[Arrays | None],
        most_steps: int | None = None,
    ) -> Iterator[tuple[slice, Trained, Tensor, int]]:
        """Train stacks beside each other: each one's result, buffers `[Q]` and local steps, in order."""
        s, here = self.settings, self._broadcast
        while len(self._lanes) < len(stacks):
            self._lanes.append(self._lane(recorded=True))
        running: list[tuple[Lane, slice, list[int]]] = []
        names: dict[int, set[str]] = {}

        def begun(lane: Lane, stack: slice, steps: list[int]) -> Iterator[None]:
            clients = unit.clients[stack]
            memory = self._memory(unit, stack, memories, here.start)
            names[stack.start] = set(memory)
            schedules = [self.schedule(unit.round, client) for client in clients]
            steps += [min(len(p.sizes), most_steps or len(p.sizes)) for p in schedules]
            if isinstance(lane.oracle, PerClientGradient):
                # Layers that draw random numbers (dropout) use torch's global generator.
                torch.manual_seed(seeds.integer(s.seed, "model", unit.round, clients[0]))
            yield from lane.train(
                self._step(lane.oracle, unit.lr),
                functools.partial(self.train_data.batches, schedules),
                *(here.start, here.shared, memory, here.buffers, steps),
                ClientNoise(s.seed, unit.round, clients, steps),
                unit.round,
            )

        for lane, stack in zip(self._lanes, stacks, strict=False):
            running.append((lane, stack, []))
        with local_steps(s.precision):
            in_turns(begun(*started) for started in running)
        for lane, stack, steps in running:
            trained, buffers = lane.finish()
            if trained.memory.keys() != names[stack.start]:
                raise ValueError(
                    f"upload returned the memory {sorted(trained.memory)}, "
                    f"but init_client names {sorted(names[stack.start])}: the names must stay the same"
                )
            yield stack, trained, buffers, sum(steps)


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
