"""Trainings by the methods' authors' own code, and the same ones by rayfl's server and engine in float64.

`released/README.md` describes the recordings. What they fix takes the place of what rayfl draws: cohorts,
and the samples of each minibatch. Samples are float64 here, which makes all that follows from them so.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.federation.breakdown import Breakdown
from rayfl.federation.client import Client
from rayfl.federation.pool import LocalPool
from rayfl.federation.scores import Scoring
from rayfl.federation.server import Server
from rayfl.federation.specs import EvaluationSpec, FederationSpec, ServerSpec
from rayfl.training.batches import BatchSchedule, DeviceData, Minibatch, StackBatches
from rayfl.training.engine import Engine
from rayfl.training.flat import Layout
from rayfl.training.settings import LocalSettings
from rayfl.training.shortcuts import Shortcuts
from rayfl.training.stacks import Stacks

FOLDER = Path(__file__).parent / "released"
# The recordings name the paper's method, with a switch for each difference.
RENAMED = {"fedwmsam": "fedwmsam_released"}
SIGNS = {-1: "released", 1: "uphill"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """One recorded training."""

    method: str
    """In rayfl."""
    options: dict[str, Any]
    w0: np.ndarray
    """`[P]`, in torch's order."""
    w: np.ndarray
    """`[rounds, P]`, in torch's order, after each round."""
    alpha: np.ndarray | None
    """`[rounds]`, FedWMSAM's."""
    cohorts: tuple[tuple[int, ...], ...]
    lrs: tuple[float, ...]
    x: np.ndarray
    """`[n, H, W, C]` or `[n, F]`, client 0's samples first, then client 1's, and so on."""
    y: np.ndarray
    sizes: np.ndarray
    """Samples of each client."""
    schedules: dict[tuple[int, int], BatchSchedule]
    """The minibatches of client i in round r, from 1, at (r, i)."""
    local: dict[str, Any]
    """Batch size, steps or epochs, weight decay and clip, as `LocalSettings` names them."""

    def model(self) -> nn.Sequential:
        if self.x.ndim == 2:
            return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)).double()
        first = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()
        second = nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.GroupNorm(2, 6), nn.ReLU()
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(54, 4)).double()

    def algorithm(self, **options: Any) -> Algorithm:
        return ALGORITHMS[self.method](**{**self.options, **options})

    def dataset(self) -> Dataset:
        """Inputs as they are: normalising changes nothing."""
        zeros = np.zeros(self.x.shape[-1], np.float32)
        names = tuple("abcd")
        return Dataset("", self.x, self.y, self.x[:1], self.y[:1], zeros, zeros + 1, names)


def traces() -> dict[str, Trace]:
    """All of them: "PROBLEM/METHOD" of fedwmsam.npz, and fednsam.npz by its own names."""
    return _convolutional(np.load(FOLDER / "fedwmsam.npz")) | _dense(
        np.load(FOLDER / "fednsam.npz")
    )


def _convolutional(z: Mapping[str, np.ndarray]) -> dict[str, Trace]:
    about, found = json.loads(str(z["about"])), {}
    for problem in ("equal", "ragged"):
        shared = _federation(z, problem, about[problem])
        for name in (n for n in about if n.startswith(f"{problem}/")):
            options = dict(about[name])
            if "perturb_sign" in options:  # they have the sign as an option of its own
                options["perturb_towards"] = SIGNS[options.pop("perturb_sign")]
            found[name] = Trace(
                method=RENAMED.get(method := options.pop("rayfl"), method),
                options=options,
                w=z[f"{name}/w"],
                alpha=z.get(f"{name}/alpha"),
                **shared,
            )
    return found


def _federation(
    z: Mapping[str, np.ndarray], problem: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Facts that all methods share on one problem of fedwmsam.npz."""
    sizes, filled = z[f"{problem}/sizes"], z[f"{problem}/cohorts"].tolist()
    cohorts = tuple(tuple(i for i in cohort if i >= 0) for cohort in filled)
    x, y = (np.concatenate([z[f"{problem}/{v}{i}"] for i in range(len(sizes))]) for v in "xy")
    begins, batch_size = np.cumsum(sizes) - sizes, settings["batch_size"]
    return {
        "w0": z[f"{problem}/w0"].astype(np.float64),
        "cohorts": cohorts,
        "lrs": tuple(settings["lr"] * settings["lr_decay"] ** t for t in range(len(cohorts))),
        "x": x.transpose(0, 2, 3, 1),
        "y": y.astype(np.int64),
        "sizes": sizes,
        "schedules": {
            (t + 1, i): _cut(begins[i] + z[f"{problem}/order{t}_{i}"], batch_size)
            for t, cohort in enumerate(cohorts)
            for i in cohort
        },
        "local": _local(settings, batch_size, epochs=settings["epochs"], steps=None),
    }


def _cut(epochs: np.ndarray, batch_size: int) -> BatchSchedule:
    """The samples of each epoch `[E, n]`, cut into minibatches."""
    cut = [e[i : i + batch_size] for e in epochs for i in range(0, len(e), batch_size)]
    indices = np.zeros((len(cut), max(map(len, cut))), np.int64)
    for row, batch in zip(indices, cut, strict=True):
        row[: len(batch)] = batch
    return BatchSchedule(indices, np.array([len(batch) for batch in cut]), None, None)


def _dense(z: Mapping[str, np.ndarray]) -> dict[str, Trace]:
    return {name: _fresh(z, name, s) for name, s in json.loads(str(z["about"])).items()}


def _fresh(z: Mapping[str, np.ndarray], name: str, settings: dict[str, Any]) -> Trace:
    """One training of fednsam.npz, where every round has samples of its own."""
    problem = settings["problem"]
    x, y = (z[f"{problem}/{v}"].swapaxes(0, 1) for v in "xy")  # [client, round, step, sample]
    clients, rounds, steps, batch_size = y.shape
    indices, sizes = np.arange(y.size).reshape(y.shape), np.full(steps, batch_size)
    return Trace(
        method=settings["rayfl"],
        options=settings["options"],
        w0=z[f"{problem}/w0"],
        w=z[f"{name}/w"],
        alpha=None,
        cohorts=tuple(map(tuple, z[f"{name}/cohorts"].tolist())),
        lrs=tuple(z[f"{name}/lr"].tolist()),
        x=x.reshape(-1, x.shape[-1]),
        y=y.reshape(-1).astype(np.int64),
        sizes=np.full(clients, rounds * steps * batch_size),
        schedules={
            (r + 1, i): BatchSchedule(indices[i, r], sizes, None, None)
            for r in range(rounds)
            for i in range(clients)
        },
        local=_local(settings, batch_size, epochs=None, steps=steps),
    )


def _local(
    settings: dict[str, Any], batch_size: int, epochs: int | None, steps: int | None
) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "local_epochs": epochs,
        "local_steps": steps,
        "weight_decay": settings["weight_decay"],
        "clip_norm": settings["clip"],
    }


class Way(NamedTuple):
    """Who computes the gradients, and for how many clients at once."""

    oracle: str
    stack: int
    """1: each client alone, in a work unit of its own; 4: the cohort at once, in one unit."""


class Doubles(DeviceData):
    """float64 samples."""

    def inputs(self, indices: Tensor) -> Tensor:
        return self.x[indices].double().view(-1, *self.shape)

    def batches(self, schedules: list[BatchSchedule]) -> StackBatches:
        return DoubleBatches(self, schedules)


class DoubleBatches(StackBatches):
    def __call__(self, k: int) -> Minibatch:
        batch = super().__call__(k)
        if batch.weights is None:
            return batch
        # 1 / size, which float32 rounded, and 0 for padding.
        return batch._replace(weights=1 / (1 / batch.weights.double()).round())


class ReplayingStacks(Stacks):
    trace: Trace

    def schedule(self, round: int, client: int, steps: int | None = None) -> BatchSchedule:
        return self.trace.schedules[round, client]


class ReplayingEngine(Engine):
    """Takes the recorded minibatches."""

    def __init__(self, trace: Trace, algorithm: Algorithm, way: Way):
        offsets = np.concatenate(([0], np.cumsum(trace.sizes)))
        settings = LocalSettings(
            seed=0,
            precision="float32",
            augment="none",
            straggler_prob=0.0,
            stack=way.stack,
            cuda_graphs=False,
            shortcuts=Shortcuts(dense=way.oracle == "BatchedMLP"),
            **trace.local,
        )
        model = trace.model()
        partition = Partition(np.arange(len(trace.y)), offsets)
        super().__init__(model, algorithm, trace.dataset(), partition, settings, "cpu")
        data = Doubles(trace.dataset(), "train", self.device)
        self.stacks = ReplayingStacks(
            self.function, algorithm, data, partition, settings, self.experiment
        )
        self.stacks.trace = trace
        assert type(self.stacks.oracle).__name__ == way.oracle


class ReplayingClient(Client):
    def __init__(self, engine: Engine):
        self.name, self.engine = "recorded", engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedCohorts(FederationSpec):
    cohorts: tuple[tuple[int, ...], ...]

    def cohort(self, round: int) -> list[int]:
        return list(self.cohorts[round - 1])


def replay(trace: Trace, way: Way, **options: Any) -> Iterator[tuple[Server, float]]:
    """After each round the server, and ||theirs - w|| / ||theirs - w0||."""
    algorithm = trace.algorithm(**options)
    engine = ReplayingEngine(trace, algorithm, way)
    rounds = len(trace.w)
    federation = RecordedCohorts(
        cohorts=trace.cohorts,
        seed=0,
        clients=len(trace.sizes),
        participation=0.5,
        sampling="uniform",
        sizes=trace.sizes,
        client_dropout=0.0,
        rounds=rounds + 1,  # the last one is evaluated
        lrs=trace.lrs,
        clients_per_unit=way.stack,
        clients_per_gpu_unit=way.stack,
        eval_every=rounds + 1,
        test_samples=1,
        validation_samples=0,
        total_weight=float(len(trace.sizes)),
        evaluation=EvaluationSpec(
            scoring=Scoring("classes", False, {}),
            breakdown=Breakdown.of(trace.dataset(), engine.partition, False, False),
        ),
    )
    w0 = in_our_order(engine.layout, trace.w0)
    pool = LocalPool(ReplayingClient(engine))
    server = Server(
        ServerSpec(algorithm, "", w0.numpy(), np.zeros(0, np.float32), federation), pool
    )
    for theirs, _ in zip(trace.w, server.run(rounds), strict=True):
        w = in_our_order(engine.layout, theirs)
        yield server, float((w - server.w).norm() / (w - w0).norm())


def in_our_order(layout: Layout, vector: np.ndarray) -> Tensor:
    """A vector in torch's order as rayfl's, which has kernels channels-last."""
    theirs, ours, begin = torch.tensor(vector), torch.full((layout.size,), torch.nan).double(), 0
    for slot in layout.parameters:
        end = begin + slot.shape.numel()
        slot.view(ours).copy_(theirs[begin:end].view(slot.shape))
        begin = end
    return ours
