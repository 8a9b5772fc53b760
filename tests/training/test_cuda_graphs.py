"""Recorded steps: the same bits as the steps themselves, wherever a recording runs none of their Python."""

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from conftest import rarely
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.base import ExperimentInfo, ServerContext
from rayfl.algorithms.noise import ClientNoise
from rayfl.config.schema import load_config
from rayfl.federation.client import Client
from rayfl.federation.pool import LocalPool
from rayfl.federation.server import Server
from rayfl.models.lenet import LeNet5
from rayfl.models.mlp import MLP
from rayfl.prepare import prepare
from rayfl.training.batches import Minibatch
from rayfl.training.cuda_graphs import GraphedSteps, Recorder, Work
from rayfl.training.flat import Layout
from rayfl.training.function import Function
from rayfl.training.gradients import BatchedMLP, Oracle, PerClientGradient, VmapGradient
from rayfl.training.lanes import Lane
from rayfl.training.local import SGD, LocalStep, Trained, Training


class Tape(TorchDispatchMode):
    """Stand-in for a CUDA graph on any device: the kernels of a function, without its Python.

    Operations on tensors that the tape itself has made read those of the replay; all others are memory
    that stays where it is.
    """

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        made: dict[int, Tensor] = {}

        def now(tensor: Tensor) -> Tensor:
            return made.get(id(tensor), tensor)

        for operation, args, kwargs, result in self.operations:
            again = operation(
                *tree_map_only(Tensor, now, args), **tree_map_only(Tensor, now, kwargs)
            )
            for old, new in zip(tensors(result), tensors(again), strict=True):
                made.setdefault(id(old), new)


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return (
        [r for r in result or () if isinstance(r, Tensor)]
        if isinstance(result, (tuple, list))
        else []
    )


class Tapes:
    """Recorder on any device; counts what it recorded."""

    def __init__(self):
        self.recorded = 0

    def record(self, work: Work) -> Work:
        self.recorded += 1
        with Tape() as recorded:
            work()
        return recorded.replay

    def watched(self):
        return contextlib.nullcontext()

    def randomness(self) -> object:
        return torch.get_rng_state().numpy().tobytes()


SHAPE, CLASSES, LRS = (1, 2, 4), 3, (0.1, 0.07, 0.05)


def batches(round: int, clients: int, ragged: bool) -> list[Minibatch]:
    """Four minibatches of each client, other ones every round."""
    generator = torch.Generator().manual_seed(round)
    weights = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [0.25] * 4])[:clients]
    return [
        Minibatch(
            inputs=torch.randn(clients, 4, *SHAPE, generator=generator),
            targets=torch.randint(CLASSES, (clients, 4), generator=generator),
            weights=weights if ragged and k == 1 else None,
        )
        for k in range(4)
    ]


def three_rounds(
    algorithm: Algorithm,
    oracle: Oracle,
    steps: list[int],
    recorded: GraphedSteps | None,
    **sgd: Any,
) -> list[Trained]:
    """Three rounds of the same clients, whose memories and server go on."""
    torch.manual_seed(0)
    model = MLP(hidden=(5,)).build(SHAPE, CLASSES)
    layout = Layout(model)
    w, _ = layout.flatten(model)
    info = ExperimentInfo((9, 9, 9), 3, 1, None, tuple(layout.parameters))
    server, first = algorithm.init_server(w), algorithm.init_client(w)
    memory = {name: value.repeat(len(steps), 1) for name, value in first.items()}
    results = []
    for round, lr in enumerate(LRS, 1):
        step = LocalStep(algorithm, oracle, SGD(lr=lr, **sgd), info)
        start, shared = algorithm.broadcast(w, server)
        minibatches = batches(round, len(steps), ragged=len(steps) > 1)
        noise = ClientNoise(0, round, range(len(steps)), steps)
        trained = Training(
            step, minibatches.__getitem__, start, shared, memory, steps, recorded, noise, round
        ).run()
        results.append(trained)
        memory = trained.memory
        mean = {name: value.mean(0) for name, value in trained.uploads.items()}
        ctx = ServerContext(lr=lr, steps=sum(steps) / len(steps), participation=1.0, round=round)
        w, server = algorithm.server_step(w, server, mean, ctx)
    return results


def oracle(kind: str) -> Oracle:
    model = MLP(hidden=(5,)).build(SHAPE, CLASSES)
    kinds = {"dense": BatchedMLP, "module": VmapGradient, "client": PerClientGradient}
    return kinds[kind](Function(model, Layout(model)))


def recorder(
    algorithm: Algorithm, oracle: Oracle, tapes: Recorder | None = None, **sgd: Any
) -> GraphedSteps:
    model = MLP(hidden=(5,)).build(SHAPE, CLASSES)
    layout = Layout(model)
    info = ExperimentInfo((9, 9, 9), 3, 1, None, tuple(layout.parameters))
    return GraphedSteps(LocalStep(algorithm, oracle, SGD(lr=99.0, **sgd), info), tapes or Tapes())


def same(left: Trained, right: Trained) -> bool:
    groups = [
        ({"losses": t.losses} | {f"up/{n}": v for n, v in t.uploads.items()} | t.memory)
        for t in (left, right)
    ]
    return (
        groups[0].keys() == groups[1].keys()
        and all(torch.equal(groups[0][name], groups[1][name]) for name in groups[0])
        and left.backward_passes == right.backward_passes
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(pytest.param(name, "dense", marks=pytest.mark.slow) for name in ALGORITHMS),
        *((name, kind) for name in ("fedwmsam", "moon") for kind in ("module", "client")),
        ("fedsam with momentum", "dense"),
    ],
)
def test_recorded_rounds_have_the_bits_of_those_that_are_not(name, kind):
    """Other minibatches, learning rates, memories and broadcasts than those of the recording."""
    name, *momentum = name.split(" with ")
    algorithm = ALGORITHMS[name]()
    options = {"weight_decay": 0.01, "clip_norm": 1.0, "momentum": 0.9 if momentum else 0.0}
    steps = [4] if kind == "client" else [4, 2, 3]
    recorded = recorder(algorithm, oracle(kind), **options)
    expected = three_rounds(algorithm, oracle(kind), steps, None, **options)
    results = three_rounds(algorithm, oracle(kind), steps, recorded, **options)
    assert recorded.refused is None
    # Of twelve steps the first of a round is recorded, and the second for all others (of three clients
    # with 4, 2 and 3 steps the third has another shape).
    assert recorded.replays == (10 if kind == "client" else 9)
    assert recorded.recordings == (2 if kind == "client" else 3)
    assert all(map(same, results, expected))


def test_stacks_of_two_shapes_keep_apart():
    algorithm = ALGORITHMS["fedwmsam"]()
    recorded = recorder(algorithm, oracle("dense"), weight_decay=0.0, clip_norm=None)
    for steps in ([4, 4, 4], [4, 2], [4, 4, 4], [3, 4], [1, 1, 1]):
        results, expected = (
            three_rounds(algorithm, oracle("dense"), steps, r, weight_decay=0.0, clip_norm=None)
            for r in (recorded, None)
        )
        assert all(map(same, results, expected))


@dataclass(frozen=True, kw_only=True)
class Swaps(Algorithm):
    """Two vectors of its memory change places at every step."""

    def init_client(self, w):
        return {"a": torch.zeros_like(w), "b": torch.ones_like(w)}

    def local_step(self, x, memory, grad, ctx):
        return grad(x) + memory["b"], {"a": memory["b"], "b": memory["a"]}


@dataclass(frozen=True, kw_only=True)
class Counts(Algorithm):
    """Keeps to itself how often it was called: no recording can do what it does."""

    calls: ClassVar[list[int]] = [0]

    def local_step(self, x, memory, grad, ctx):
        self.calls[0] += 1
        return grad(x) * self.calls[0], memory


def test_vectors_that_change_places():
    recorded = recorder(Swaps(), oracle("dense"), weight_decay=0.0, clip_norm=None)
    results, expected = (
        three_rounds(Swaps(), oracle("dense"), [3, 3], r, weight_decay=0.0, clip_norm=None)
        for r in (recorded, None)
    )
    assert all(map(same, results, expected))


def test_a_step_that_its_recording_does_not_repeat_is_taken_itself():
    recorded = recorder(Counts(), oracle("dense"), weight_decay=0.0, clip_norm=None)
    three_rounds(Counts(), oracle("dense"), [3], recorded, weight_decay=0.0, clip_norm=None)
    assert recorded.refused == "step 0 and its recording do not do the same"
    assert recorded.replays == 0


@dataclass(frozen=True, kw_only=True)
class Draws(Algorithm):
    """Adds noise to the gradients of every step but the first."""

    def local_step(self, x, memory, grad, ctx):
        return grad(x) + (ctx.random(x) if ctx.step else 0.0), memory


def test_a_step_that_draws_random_numbers_is_taken_itself():
    """A recording would have the numbers of its first round for ever; step 0 draws none."""
    recorded = recorder(Draws(), oracle("dense"), weight_decay=0.0, clip_norm=None)
    results, expected = (
        three_rounds(Draws(), oracle("dense"), [4, 2, 3], r, weight_decay=0.0, clip_norm=None)
        for r in (recorded, None)
    )
    assert all(map(same, results, expected))
    assert recorded.refused == "step 1 draws random numbers"
    assert recorded.replays == 2


class Waits(Tapes):
    """Finds that the second step waits for the device."""

    @contextlib.contextmanager
    def watched(self):
        yield
        if self.recorded == 1:
            raise RuntimeError("called a synchronizing CUDA operation\nmore")


def test_a_step_that_waits_for_the_device_is_taken_itself():
    """It is never given to the recorder: a failed CUDA graph leaves the process of no use."""
    algorithm, tapes = ALGORITHMS["scaffold"](), Waits()
    recorded = recorder(algorithm, oracle("dense"), tapes, weight_decay=0.0, clip_norm=None)
    results, expected = (
        three_rounds(algorithm, oracle("dense"), [4, 2], r, weight_decay=0.0, clip_norm=None)
        for r in (recorded, None)
    )
    assert recorded.refused == ("step 1 cannot be recorded: called a synchronizing CUDA operation")
    assert tapes.recorded == 1
    assert all(map(same, results, expected))


class Fails(Tapes):
    def record(self, work: Work) -> Work:
        raise RuntimeError("a local step could not be recorded as a CUDA graph")


def test_a_recording_that_fails_ends_the_run():
    recorded = recorder(
        ALGORITHMS["fedavg"](), oracle("dense"), Fails(), weight_decay=0.0, clip_norm=None
    )
    with pytest.raises(RuntimeError, match="could not be recorded"):
        three_rounds(
            ALGORITHMS["fedavg"](), oracle("dense"), [2], recorded, weight_decay=0.0, clip_norm=None
        )


@dataclass(frozen=True, kw_only=True)
class ByStep(Algorithm):
    """Depends on the number of the step in the way that `how` names."""

    how: str

    def local_step(self, x, memory, grad, ctx):
        g, k = grad(x), ctx.step
        factor = {
            "not": lambda: 1.0,
            "times": lambda: 0.3 * k,
            "decay": lambda: 1 / (1 + 0.37 * k),
            "adam": lambda: 1 / (1 - 0.9 ** (k + 1)),
            "divides": lambda: k / ctx.steps,
            "first": lambda: 2.0 if k > 0 else 1.0,
            "third": lambda: 2.0 if k == 2 else 1.0,
            "index": lambda: [1.0, 0.5, 0.7, 0.9][k],
            "odd": lambda: 2.0 if k % 2 else 1.0,
            "text": lambda: float(f"0.{k}"),
            "power": lambda: torch.full_like(x[:, :1], 0.9) ** k,
            "tensor": lambda: torch.full_like(x[:, :1], k),
        }[self.how]()
        return g * factor + x / (k + 1.5), memory


@pytest.mark.parametrize("how", ["not", "times", "decay", "adam", "divides", "first"])
def test_numbers_that_follow_from_the_step_have_a_place_in_one_recording(how):
    recorded = recorder(ByStep(how=how), oracle("dense"), weight_decay=0.0, clip_norm=None)
    results, expected = (
        three_rounds(ByStep(how=how), oracle("dense"), [4], r, weight_decay=0.0, clip_norm=None)
        for r in (recorded, None)
    )
    assert all(map(same, results, expected))
    assert recorded.recordings == 2


@pytest.mark.parametrize("how", ["third", "index", "odd", "text", "power", "tensor"])
def test_a_step_that_depends_on_its_number_otherwise_is_recorded_for_each(how):
    recorded = recorder(ByStep(how=how), oracle("dense"), weight_decay=0.0, clip_norm=None)
    results, expected = (
        three_rounds(ByStep(how=how), oracle("dense"), [4], r, weight_decay=0.0, clip_norm=None)
        for r in (recorded, None)
    )
    assert all(map(same, results, expected))
    assert recorded.recordings == 4


def test_a_client_with_buffers_of_its_own_is_recorded_where_they_lie():
    """Of SAM's two passes the first alone moves BatchNorm's statistics and its count of batches."""
    torch.manual_seed(0)
    parts = nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES)
    model = nn.Sequential(*parts)
    algorithm, layout = ALGORITHMS["fedsam"](), Layout(model)
    info = ExperimentInfo((9,), 3, 1, None, tuple(layout.parameters))
    w, first = layout.flatten(model)

    def two_clients(recorded: bool) -> list[Any]:
        oracle = PerClientGradient(Function(model, layout))
        step = LocalStep(algorithm, oracle, SGD(lr=0.1, weight_decay=0.0, clip_norm=None), info)
        graphed, buffers, left = (
            GraphedSteps(step, Tapes()) if recorded else None,
            first.clone(),
            [],
        )
        for client in (1, 2):
            buffers.copy_(first)
            oracle.begin_client(buffers)
            minibatches = batches(client, 1, ragged=False)
            trained = Training(step, minibatches.__getitem__, w, {}, {}, [4], graphed).run()
            counted = oracle.buffers["2.num_batches_tracked"].item()
            left.append((trained, buffers.clone(), counted))
        assert graphed is None or (graphed.refused, graphed.recordings) == (None, 2)
        return left

    for (one, buffers, counted), (other, others, again) in zip(
        two_clients(recorded=True), two_clients(recorded=False), strict=True
    ):
        assert same(one, other)
        assert torch.equal(buffers, others)
        assert counted == again == 4
        assert not torch.equal(buffers, first)


def test_a_model_that_draws_from_torchs_generator_is_not_recorded():
    """A recording would draw other numbers than the step itself, or the same ones for ever."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Dropout(), nn.Linear(5, CLASSES))
    layout = Layout(model)
    info = ExperimentInfo((9,), 3, 1, None, tuple(layout.parameters))
    w, _ = layout.flatten(model)

    def one_client(recorded: bool) -> tuple[Trained, GraphedSteps | None]:
        oracle = PerClientGradient(Function(model, layout))
        sgd = SGD(lr=0.1, weight_decay=0.0, clip_norm=None)
        step, tapes = LocalStep(ALGORITHMS["fedavg"](), oracle, sgd, info), Tapes()
        graphed = GraphedSteps(step, tapes) if recorded else None
        torch.manual_seed(1)
        minibatches = batches(1, 1, ragged=False)
        trained = Training(step, minibatches.__getitem__, w, {}, {}, [4], graphed).run()
        assert tapes.recorded == 0
        return trained, graphed

    (trained, graphed), (expected, _) = one_client(recorded=True), one_client(recorded=False)
    assert graphed is not None
    assert graphed.refused == "step 0 draws random numbers"
    assert graphed.draws
    assert same(trained, expected)


@pytest.mark.parametrize("name", ["fedwmsam", *rarely(["local_adamw", "own_methods:CountsBySize"])])
def test_lanes_have_the_bits_of_one_client_after_the_other(name, small, monkeypatch):
    """Six clients of unequal sizes, several rounds, their memories kept."""

    def recording_lane(step: LocalStep, oracle: Oracle, buffers: Tensor) -> Lane:
        return Lane(oracle, buffers, None, GraphedSteps(step, Tapes(), in_place=True))

    monkeypatch.setattr("rayfl.training.stacks.recording_lane", recording_lane)
    small["algorithm"] = {"name": name}
    # In bfloat16 chains of linear layers train one client at a time, too.
    small["federation"] |= {
        "cohort": 6,
        "rounds": 2,
        "clients_per_unit": 6,
        "precision": "bfloat16",
    }
    prepared = prepare(load_config(small))
    found = []
    for lanes in (None, 1, 4):
        server, client = prepared.specs()
        pool = LocalPool(Client(client))
        engine = pool.client.engine
        if lanes is not None:
            engine.stacks.use(recorded=True, lanes=lanes)
        server = Server(server, pool)
        metrics = [m.values for m in server.run()]
        w, buffers, *_ = server.final()
        losses = [m["train/loss"] for m in metrics if "train/loss" in m]
        found.append((w.tobytes(), buffers.tobytes(), losses))
        recordings = engine.stacks.recordings
        assert recordings == 0 if lanes is None else recordings >= 2 * lanes
    assert all(f == found[0] for f in found)


def test_channels_stay_last_where_a_recording_reads_them():
    torch.manual_seed(0)
    model = LeNet5().build((3, 16, 16), CLASSES)
    images = torch.randn(2, 3, 5, 16, 16, 3)[:, 1].permute(
        0, 1, 4, 2, 3
    )  # as `StackBatches` has them
    batch = Minibatch(images, torch.zeros(2, 5, dtype=torch.int64), None)
    algorithm, layout = ALGORITHMS["fedavg"](), Layout(model)
    seen = []

    class Looks(VmapGradient):
        def __call__(self, x, batch, *loss):
            seen.append(batch.inputs)
            return super().__call__(x, batch, *loss)

    info = ExperimentInfo((9, 9, 9), 3, 1, None, tuple(layout.parameters))
    sgd = SGD(lr=0.1, weight_decay=0.0, clip_norm=None)
    step = LocalStep(algorithm, Looks(Function(model, layout)), sgd, info)
    w, _ = layout.flatten(model)
    Training(step, lambda k: batch, w, {}, {}, [2, 2], GraphedSteps(step, Tapes())).run()
    assert torch.equal(seen[0], images)
    assert seen[0][0].is_contiguous(memory_format=torch.channels_last)
