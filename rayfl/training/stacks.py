"""Stacks of clients, which train beside each other on the lanes of one device.

A stack is one client, or several where the model's arithmetic allows it; which clients share one, and how
many train at once, changes no bit of a result.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from rayfl import seeds
from rayfl.algorithms.base import Algorithm, ExperimentInfo
from rayfl.algorithms.noise import ClientNoise
from rayfl.data.partition import Partition
from rayfl.training.batches import (
    BatchSchedule,
    DeviceData,
    batch_schedule,
    client_steps,
    steps_per_round,
)
from rayfl.training.cuda_graphs import GraphedSteps
from rayfl.training.function import Function
from rayfl.training.gradients import BatchedMLP, Oracle, PerClientGradient, VmapGradient
from rayfl.training.lanes import Lane, in_turns, recording_lane
from rayfl.training.local import SGD, LocalStep, Trained
from rayfl.training.precision import local_arithmetic
from rayfl.training.process import seed_layers
from rayfl.training.settings import LocalSettings
from rayfl.training.transfers import DeviceBroadcast, DeviceMemories
from rayfl.training.units import Arrays, WorkUnit

# A stack of more parameters than this outgrows the processor's cache and loses what stacking gained;
# a GPU has no such limit but its memory.
STACK_PARAMETERS = {"cpu": 800_000, "cuda": 200_000_000}


class Stacks:
    """Trains the clients of work units: in stacks, and so many of them at once as there are lanes."""

    def __init__(
        self,
        function: Function,
        algorithm: Algorithm,
        data: DeviceData,
        partition: Partition,
        settings: LocalSettings,
        experiment: ExperimentInfo,
    ):
        self.algorithm = algorithm
        self._function, self._data, self._partition = function, data, partition
        self._settings, self._experiment = settings, experiment
        self.lanes = 1  # stacks that train beside each other, at most
        self.use(recorded=False)

    @property
    def oracle(self) -> Oracle:
        return self._lanes[0].oracle

    @property
    def recordings(self) -> int:
        """Number of recorded steps."""
        return sum(lane.graphed.recordings for lane in self._lanes if lane.graphed is not None)

    @property
    def graphed(self) -> GraphedSteps | None:
        """The first lane's recorded steps; None: steps are not recorded."""
        return self._lanes[0].graphed

    def use(self, recorded: bool, lanes: int = 1) -> None:
        """Begin anew with one lane, and at most so many once they are needed."""
        self._lanes, self.lanes = [self._lane(recorded)], lanes

    def train(
        self,
        unit: WorkUnit,
        here: DeviceBroadcast,
        kept: DeviceMemories,
        memories: list[Arrays | None],
        exactly: int | None = None,
    ) -> Iterator[tuple[slice, Trained, Tensor, list[int]]]:
        """Train a unit: each stack's clients, result, buffers `[Q]` and clients' steps, in order.

        `exactly`: so many steps; None: as many as each client takes in this round.
        """
        size = self._stack_size(len(unit.clients))
        firsts = range(0, len(unit.clients), size)
        for wave in range(0, len(firsts), self.lanes):
            stacks = [slice(first, first + size) for first in firsts[wave : wave + self.lanes]]
            yield from self._wave(unit, stacks, here, kept, memories, exactly)

    def _wave(
        self,
        unit: WorkUnit,
        stacks: list[slice],
        here: DeviceBroadcast,
        kept: DeviceMemories,
        memories: list[Arrays | None],
        exactly: int | None,
    ) -> Iterator[tuple[slice, Trained, Tensor, list[int]]]:
        """Train stacks beside each other."""
        s = self._settings
        while len(self._lanes) < len(stacks):
            self._lanes.append(self._lane(recorded=True))
        running: list[tuple[Lane, slice, list[int]]] = []
        names: dict[int, set[str]] = {}

        def begun(lane: Lane, stack: slice, steps: list[int]) -> Iterator[None]:
            clients = unit.clients[stack]
            first = {} if all(memories[stack]) else self.algorithm.init_client(here.start)
            memory = kept.stacked(unit, stack, memories, first)
            names[stack.start] = set(memory)
            schedules = [self.schedule(unit.round, client, exactly) for client in clients]
            steps += [len(p.sizes) for p in schedules]
            if isinstance(lane.oracle, PerClientGradient):
                # Layers that draw random numbers (dropout) use torch's global generator.
                seed_layers(
                    seeds.integer(s.seed, "model", unit.round, clients[0]), here.start.device
                )
            yield from lane.train(
                self._step(lane.oracle, unit.lr, unit.round),
                functools.partial(self._data.batches, schedules),
                *(here.start, here.shared, memory, here.buffers, steps),
                ClientNoise(s.seed, unit.round, clients, steps),
                unit.round,
                self._partition.sizes_of(clients).tolist(),
            )

        for lane, stack in zip(self._lanes, stacks, strict=False):
            running.append((lane, stack, []))
        with local_arithmetic(s.precision):
            in_turns(begun(*started) for started in running)
        for lane, stack, steps in running:
            trained, buffers = lane.finish()
            if trained.memory.keys() != names[stack.start]:
                raise ValueError(
                    f"upload returned the memory {sorted(trained.memory)}, "
                    f"but init_client names {sorted(names[stack.start])}: the names must stay the same"
                )
            yield stack, trained, buffers, steps

    def schedule(self, round: int, client: int, steps: int | None = None) -> BatchSchedule:
        """The client's minibatches; `steps`: as many, None: as many as it takes in this round."""
        samples, s = self._partition.client(client), self._settings
        if steps is None:
            whole = steps_per_round(len(samples), s.batch_size, s.local_epochs, s.local_steps)
            steps = client_steps(whole, s.straggler_prob, s.seed, round, client)
        padding = self._data.padding
        return batch_schedule(
            samples, s.batch_size, steps, s.seed, round, client, s.augment, padding
        )

    def _lane(self, recorded: bool) -> Lane:
        """Another lane, with an oracle and buffers of its own."""
        s = self._settings
        # Autocast has no say over the hand-written backward pass.
        if s.shortcuts.dense and s.precision != "bfloat16":
            oracle: Oracle = BatchedMLP(self._function)
        else:
            kind = VmapGradient if (s.stack or 1) > 1 else PerClientGradient
            oracle = kind(self._function, s.precision)
        buffers = torch.zeros(
            sum(b.size for b in self._function.layout.buffers), device=self._data.x.device
        )
        if not recorded:
            return Lane(oracle, buffers)
        return recording_lane(self._step(oracle, lr=0.0, round=1), oracle, buffers)

    def _step(self, oracle: Oracle, lr: float, round: int) -> LocalStep:
        s = self._settings
        sgd = SGD(
            lr=lr,
            weight_decay=s.weight_decay,
            clip_norm=s.clip_norm,
            momentum=s.momentum,
            nesterov=s.nesterov,
        )
        return LocalStep(self.algorithm.at(round), oracle, sgd, self._experiment)

    @property
    def most(self) -> int:
        """Clients of a stack, at most."""
        if self._settings.stack is not None:
            return self._settings.stack
        if not self.oracle.stacks:
            return 1
        return max(1, STACK_PARAMETERS[self._data.x.device.type] // self._function.layout.size)

    def _stack_size(self, clients: int) -> int:
        """Clients of each stack, which are as equal as can be."""
        return -(-clients // -(-clients // self.most))
