"""The engine executes work units: it trains the clients of one unit, or evaluates a piece of a data set.

It holds what every unit needs (model, data, algorithm) and nothing that a result depends on: the same
unit gives the same bits in any process of one device type.
"""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from rayfl import kernels
from rayfl.algorithms.base import Algorithm, Vectors
from rayfl.algorithms.scheduled import Scheduled
from rayfl.algorithms.vectors import precise_norm
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import first_line
from rayfl.training.batches import (
    DeviceData,
    as_tensor,
)
from rayfl.training.evaluation import Evaluator
from rayfl.training.lanes import most_lanes
from rayfl.training.settings import LocalSettings, experiment_info
from rayfl.training.stacks import Stacks
from rayfl.training.transfers import DeviceBroadcast, DeviceMemories, to_host
from rayfl.training.units import (
    Arrays,
    Broadcast,
    EvaluationResult,
    Split,
    UnitResult,
    WorkUnit,
)
from rayfl.training.weighting import weights

# Part of a GPU's memory for clients' memories, which it keeps from one round of a client to its next.
KEPT_MEMORY = 0.15
# Steps on a GPU before the first round: the first one, the second and another.
TRIAL_STEPS, TRIAL_LR = 3, 1e-3


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
        # The reason why kernels are not fused; None: they are, or this is no GPU.
        self.unfused = kernels.use(self.device) if on_gpu else None
        model = model.to(self.device)
        if on_gpu and self.unfused is None:
            model = kernels.with_group_norm(model)
        self.function = settings.shortcuts.function(model, settings.task)
        self.model, self.layout = self.function.model, self.function.layout
        self.partition, self.settings = partition, settings
        self.remembers = bool(algorithm.init_client(torch.zeros(self.layout.size)))
        self.train_data = DeviceData(dataset, "train", self.device)
        self.test_data = DeviceData(dataset, "test", self.device)
        held_out = as_tensor(partition.validation)
        samples = torch.arange(len(self.test_data), device=self.device)
        splits: dict[Split, tuple[DeviceData, Tensor]] = {
            "test": (self.test_data, samples),
            "validation": (self.train_data, held_out.to(self.device)),
        }
        self._evaluate = Evaluator(self.function, splits, settings.seed, settings.keeps_outputs)
        self.experiment = experiment_info(self.layout, partition, settings)
        self._private = settings.privacy
        self.refused: str | None = None  # why steps are not recorded; None: they are
        # A kernel of the model that may add up in any order; None: there is none.
        self.varies: str | None = None
        self._share, self._pinned = share, pinned and on_gpu
        self._broadcast = DeviceBroadcast(self.device, keeps=on_gpu)
        total = torch.cuda.get_device_properties(self.device).total_memory if on_gpu else 0
        self._memories = DeviceMemories(self.device, int(share * KEPT_MEMORY * total))
        self.stacks = self._stacks_of(algorithm)
        if on_gpu:
            self._prepare_gpu()

    @property
    def algorithm(self) -> Algorithm:
        return self.stacks.algorithm

    @torch.no_grad()
    def train(
        self,
        unit: WorkUnit,
        broadcast: Broadcast,
        memories: list[Arrays | None],
        steps: int | None = None,
    ) -> tuple[UnitResult, list[Arrays]]:
        """Train the unit's clients, given each client's memory (None: its first round).

        `steps`: local steps of each; None: as many as it takes in a round.
        """
        began = time.perf_counter()
        self.model.train()
        self._broadcast.load(broadcast)
        algorithm = self.algorithm.at(unit.round)
        sums: Vectors = {}
        losses, drifts, kept, weighed, counts = [], [], [], [], []
        passes, sent, clipped, private = 0, 0, 0, self._private
        given = unit, self._broadcast, self._memories, memories, steps
        for stack, trained, buffers, taken in self.stacks.train(*given):
            uploads, method = trained.uploads, algorithm
            if private is not None:
                uploads, outside = private.clipped(uploads)
                clipped += int(outside.sum())
                private.add_share_(uploads, unit.round, unit.clients[stack])
                if private.clients_add_noise:  # which leaves no entry 0
                    method = Algorithm()
            if algorithm.sends != "nothing":
                sent += int(method.upload_bytes(uploads, self.experiment).sum())
                sent += len(unit.clients[stack]) * buffers.nbytes
            uploads = uploads | {"buffers": buffers.unsqueeze(0)}
            own = self._weights(unit.clients[stack], taken)
            if self.settings.weighting != "uniform":
                factor = as_tensor(own).to(buffers).unsqueeze(-1)
                uploads = {name: value * factor for name, value in uploads.items()}
            for name, value in uploads.items():
                summed = value.sum(0) if len(value) > 1 else value[0]
                sums[name] = sums[name] + summed if name in sums else summed
            losses.append(trained.losses)
            drifts.append(_unless_broken(precise_norm(trained.uploads["delta"]), trained.memory))
            kept += self._kept(unit, unit.clients[stack], trained.memory)
            weighed.append(own)
            counts += taken
            passes += trained.backward_passes
        result = UnitResult(
            sums=to_host(sums, self._pinned),
            **to_host({"losses": torch.cat(losses), "drifts": torch.cat(drifts)}, pinned=False),
            weights=np.concatenate(weighed),
            steps=np.array(counts),
            backward_passes=passes,
            bytes_up=sent,
            seconds=time.perf_counter() - began,
            clipped=clipped,
        )
        return result, kept

    def evaluate(
        self, broadcast: Broadcast, split: Split, first: int, last: int
    ) -> EvaluationResult:
        """Loss of the split's samples `first` to `last` at `broadcast.start`, and each one's score."""
        self._broadcast.load(broadcast)
        return self._evaluate(self._broadcast, split, first, last)

    def scores(
        self, start: np.ndarray, buffers: np.ndarray, samples: np.ndarray, key: int
    ) -> np.ndarray:
        """Score of these test samples at any parameters; `key` seeds random layers."""
        w, own, indices = (as_tensor(v).to(self.device) for v in (start, buffers, samples))
        return self._evaluate.on(w, own.clone(), "test", indices, key).scores

    @contextlib.contextmanager
    def following(self, algorithm: Algorithm) -> Iterator[None]:
        """Context in which clients follow another algorithm, with the same memories, one by one.

        What they send is not clipped, and has no noise: nobody but whoever measures gets it.
        """
        before = self._private, self.stacks
        self._private, self.stacks = None, self._stacks_of(algorithm)
        try:
            yield
        finally:
            self._private, self.stacks = before

    def _stacks_of(self, algorithm: Algorithm) -> Stacks:
        data = self.train_data, self.partition
        return Stacks(self.function, algorithm, *data, self.settings, self.experiment)

    @torch.no_grad()
    def _prepare_gpu(self) -> None:
        """Take the first steps of a client, to know what can be recorded, and how many lanes fit.

        They also load the kernels, and are no part of any result.
        """
        w, buffers = (v.to(self.device) for v in self.layout.flatten(self.model))
        start, shared = self.algorithm.at(1).broadcast(w, self.algorithm.init_server(w))
        vectors = {name: v.cpu().numpy() for name, v in shared.items()}
        broadcast = Broadcast(start.cpu().numpy(), vectors, buffers.cpu().numpy())
        client = int(self.partition.sizes.argmax())
        unit = WorkUnit(1, (client,) * (2 if self.stacks.oracle.stacks else 1), TRIAL_LR)
        before = torch.cuda.memory_reserved(self.device)
        self._try(unit, broadcast)
        graphed = self.stacks.graphed
        if graphed is None:
            self.refused = (
                "hyper-parameters change over the rounds"
                if self.settings.cuda_graphs
                else "resources.cuda_graphs is false"
            )
            return
        self.refused = graphed.refused
        if self.refused is None and not self.stacks.oracle.stacks:
            per_lane = torch.cuda.memory_reserved(self.device) - before
            fit = most_lanes(self.device, per_lane, self._share)
            self.stacks.lanes = fit if self.settings.lanes is None else self.settings.lanes
        elif graphed.draws:
            # Whoever draws from torch's generator must be alone: the clients' draws would mix.
            self.stacks.use(recorded=False)

    def _try(self, unit: WorkUnit, broadcast: Broadcast) -> None:
        """Train the unit's clients for a few steps and evaluate, by kernels that never vary if possible."""
        for warn_only in (False, True):
            torch.use_deterministic_algorithms(True, warn_only=warn_only)
            # A recording has the numbers of its round in it.
            recorded = self.settings.cuda_graphs and not isinstance(self.algorithm, Scheduled)
            self.stacks.use(recorded)
            memories: list[Arrays | None] = [None] * len(unit.clients)
            try:
                self.model.train()
                self._broadcast.load(broadcast)
                list(
                    self.stacks.train(unit, self._broadcast, self._memories, memories, TRIAL_STEPS)
                )
                self.evaluate(broadcast, "test", 0, 1)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                return
            except RuntimeError as error:
                if warn_only or "deterministic" not in str(error):
                    raise
                self.varies = first_line(error)

    def __str__(self) -> str:
        """Describe the local steps: "PerClientGradient, CUDA graphs, 10 lanes"."""
        kind = type(self.stacks.oracle).__name__
        size = f" of at most {self.stacks.most}" if self.stacks.oracle.stacks else ""
        if self.device.type != "cuda":
            return kind + size
        graphs = "CUDA graphs" if self.refused is None else f"no CUDA graphs: {self.refused}"
        lanes = f", {self.stacks.lanes} lanes" if self.stacks.lanes > 1 else ""
        varies = f", not the same every time: {self.varies}" if self.varies else ""
        fused = f", no fused kernels: {self.unfused}" if self.unfused else ""
        return f"{kind}{size}, {graphs}{lanes}{fused}{varies}"

    def _weights(self, clients: tuple[int, ...], steps: list[int]) -> np.ndarray:
        samples = self.partition.sizes_of(clients)
        return weights(self.settings.weighting, samples, np.array(steps))

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


def _unless_broken(drifts: Tensor, memory: Vectors) -> Tensor:
    """The drifts `[C]`, NaN for clients whose memory has numbers that are not finite."""
    for value in memory.values():
        drifts = drifts + 0 * value.sum(-1)
    return drifts
