"""The parts of an engine on a GPU that any device can show."""

import copy
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
import torch
from rich.console import Console
from torch import nn

from rayfl.cli.run_display import RunDisplay
from rayfl.config.schema import load_config
from rayfl.errors import RunError
from rayfl.federation.client import Client
from rayfl.federation.pool import LocalPool
from rayfl.federation.server import Server
from rayfl.prepare import prepare
from rayfl.runtime.pool import ActorPool
from rayfl.training.engine import Engine
from rayfl.training.lanes import CudaGraphs, in_turns, most_lanes
from rayfl.training.transfers import DeviceBroadcast, DeviceMemories
from rayfl.training.units import Broadcast, WorkUnit


class Puts(nn.Module):
    """Has a kernel that may write in any order."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        with torch.no_grad():
            x.flatten(1).clone().put_(torch.tensor([0]), x.flatten()[:1])
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("varies", [True, False])
def test_a_kernel_that_may_differ_every_time_is_named(small, varies, monkeypatch):
    small["federation"] |= {"precision": "bfloat16"}
    prepared = prepare(load_config(small))
    model = Puts() if varies else copy.deepcopy(prepared.model)
    settings = replace(prepared.settings, cuda_graphs=False)
    parts = prepared.config.algorithm, prepared.data, prepared.partition, settings
    if varies:
        shortcuts = replace(settings.shortcuts, dense=False)
        parts = *parts[:3], replace(settings, shortcuts=shortcuts)
    engine = Engine(model, *parts, "cpu")
    w, buffers = engine.layout.flatten(engine.model)
    start, shared = engine.algorithm.broadcast(w, engine.algorithm.init_server(w))
    vectors = {name: value.numpy() for name, value in shared.items()}
    broadcast = Broadcast(start.numpy(), vectors, buffers.numpy())
    try:
        with torch.no_grad():
            engine._try(WorkUnit(1, (0,), 0.1), broadcast)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (engine.varies is not None) == varies
    if varies:
        assert engine.varies.startswith("put_ does not have a deterministic implementation")


@pytest.mark.slow
def test_a_process_whose_gpu_is_of_no_use_ends():
    """As one that has died: its work unit runs again elsewhere. Here no GPU answers at all."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which answers")
    program = """
from rayfl.runtime.client import ended_if_broken
try:
    with ended_if_broken({device!r}):
        raise ValueError("the step failed")
except ValueError:
    print("went on")
"""
    done = [
        subprocess.run(
            [sys.executable, "-c", program.format(device=device)],
            capture_output=True,
            text=True,
            check=False,
        )
        for device in ("cuda", "cpu")
    ]
    assert [(d.returncode, d.stdout) for d in done] == [(1, ""), (0, "went on\n")]
    assert "ValueError: the step failed" in done[0].stderr


def test_lanes_take_turns_and_begin_one_after_the_other():
    taken = []

    def lane(name, steps):
        for k in range(steps):
            taken.append(f"{name}{k}")
            yield

    in_turns(lane(name, steps) for name, steps in (("a", 3), ("b", 1), ("c", 2)))
    assert taken == ["a0", "a1", "b0", "a2", "c0", "c1"]


def test_a_broadcast_is_brought_once():
    device = DeviceBroadcast(torch.device("cpu"), keeps=True)
    ones = Broadcast(*(torch.ones(3).numpy(), {"m": torch.ones(3).numpy()}, torch.ones(0).numpy()))
    device.load(ones._replace(key=b"1"))
    first = device.start
    device.load(ones._replace(start=5 * ones.start, key=b"1"))  # the same key: the same vectors
    assert device.start is first
    device.load(ones._replace(start=5 * ones.start, key=b"2"))
    assert device.start.tolist() == [5, 5, 5]
    device.load(ones)  # without a key it is not known
    device.load(ones._replace(start=2 * ones.start))
    assert device.start.tolist() == [2, 2, 2]


class Renormalises(nn.Module):
    """Changes its parameters in the forward pass, as nn.Embedding(max_norm=...) does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        with torch.no_grad():
            self.layer.weight.mul_(0.9)
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("keeps", [False, True])
def test_an_evaluation_changes_nothing_that_clients_start_from(small, keeps):
    small["federation"] |= {"precision": "bfloat16"}
    prepared = prepare(load_config(small))
    settings = replace(
        prepared.settings, shortcuts=replace(prepared.settings.shortcuts, dense=False)
    )
    found = []
    for evaluates in (False, True):
        parts = prepared.config.algorithm, prepared.data, prepared.partition, settings
        torch.manual_seed(0)
        engine = Engine(Renormalises(), *parts, "cpu")
        engine._broadcast = DeviceBroadcast(engine.device, keeps)
        w, buffers = engine.layout.flatten(engine.model)
        start, shared = engine.algorithm.broadcast(w, engine.algorithm.init_server(w))
        vectors = {name: value.numpy() for name, value in shared.items()}
        broadcast = Broadcast(start.numpy(), vectors, buffers.numpy(), b"1")
        for _ in range(2 * evaluates):
            engine.evaluate(broadcast, "test", 0, 50)
        result, _ = engine.train(WorkUnit(1, (0,), 0.1), broadcast, [None])
        found.append(result.sums["delta"])
    assert (found[0] == found[1]).all()


def test_a_clients_memory_is_a_copy_of_what_came():
    """The object store's is read-only, and may be aligned as no tensor is."""
    memories = DeviceMemories(torch.device("cpu"), 0)
    came = {"m": torch.ones(10).numpy()}
    stacked = memories.stacked(WorkUnit(1, (0,), 0.1), slice(0, 1), [came], {})
    stacked["m"] += 1
    assert came["m"].tolist() == [1.0] * 10


def test_the_longest_unused_memories_go_first():
    memories = DeviceMemories(torch.device("cpu"), most_bytes=3 * 40)
    for client in range(4):
        memories.keep((b"1", client), {"m": torch.full((10,), float(client))})
    assert memories.get((b"1", 0)) is None
    kept = memories.get((b"1", 3))
    assert kept is not None
    assert kept["m"][0] == 3
    assert memories.get((b"1", 3)) is None  # a client's next memory replaces it
    assert memories.get((b"2", 1)) is None  # another unit's


def test_a_device_that_keeps_memories_has_the_bits_of_one_that_does_not(small, monkeypatch):
    """Every client's memory is taken from where it was left, if its name is the one that is asked for."""
    small["algorithm"] = {"name": "scaffold"}
    small["federation"] |= {"rounds": 6}
    found, taken = [], [0]
    prepared = prepare(load_config(small))

    class Kept(DeviceMemories):
        def get(self, key):
            memory = super().get(key)
            taken[0] += memory is not None
            return memory

    for keeps in (False, True):
        server, client = prepared.specs()
        pool = LocalPool(Client(client))
        engine, train = pool.client.engine, pool.client.engine.train
        engine._memories = Kept(torch.device("cpu"), 1 << 30)

        def and_keep(unit, broadcast, memories, engine=engine, train=train, keeps=keeps):
            result, kept = train(unit, broadcast, memories)
            for number, memory in zip(unit.clients, kept if keeps else [], strict=False):
                tensors = {name: torch.tensor(value) for name, value in memory.items()}
                engine._memories.keep((unit.name, number), tensors)
            return result, [
                {n: v * float("nan") for n, v in m.items()} if keeps else m for m in kept
            ]

        monkeypatch.setattr(engine, "train", and_keep)
        made = Server(server, pool)
        list(made.run())
        found.append(made.final().w.tobytes())
    assert found[0] == found[1]
    assert taken[0] > 0


@pytest.mark.slow
def test_client_actors_with_different_kernels_are_an_error(ray_session):
    """Those of a node without a C compiler would round differently."""

    @ray.remote
    class Described:
        def __init__(self, kernels):
            self.kernels = kernels

        def describe(self):
            return {"node": "10.0.0.7", "node_id": "7", "kernels": self.kernels}

    reasons = ["", "", "RuntimeError: Failed to find C compiler"]
    alike = ActorPool(2, lambda i: Described.options(num_cpus=0).remote(reasons[i]))
    assert len(alike.describe()) == 2
    with pytest.raises(RunError, match=r"node 10\.0\.0\.7 cannot use those of rayfl, others can"):
        ActorPool(3, lambda i: Described.options(num_cpus=0).remote(reasons[i])).describe()


def test_a_run_says_what_a_gpu_makes_of_its_steps(capsys):
    display = RunDisplay(Console(file=sys.stdout, width=200), live=False)
    graphs = "PerClientGradient, no CUDA graphs: step 0 draws random numbers"
    gpu, cpu = (
        {"device": "NVIDIA H100", "processor": "NVIDIA H100"},
        {"device": "cpu", "processor": "AVX2"},
    )
    display.actors([gpu | {"engine": graphs}] * 2 + [cpu])
    engine, warning = capsys.readouterr().out.splitlines()
    assert engine == f"2 x NVIDIA H100: {graphs}"
    assert "unlike processors (1 with AVX2, 2 with NVIDIA H100)" in warning


@pytest.mark.parametrize(
    ("total_gb", "share", "reserved_gb", "lane_gb", "expected"),
    [
        (80, 1.0, 1, 0.5, 16),  # no more than there is work for
        (80, 0.25, 1, 0.5, 16),
        (16, 1.0, 1, 1.0, 9),  # 60 % of it, less what is in use
        (16, 0.25, 1, 1.0, 2),
        (16, 0.05, 1, 1.0, 1),  # one there is in any case
    ],
)
def test_as_many_lanes_as_memory_holds(
    total_gb, share, reserved_gb, lane_gb, expected, monkeypatch
):
    gb, device = 1 << 30, torch.device("cuda")
    properties = SimpleNamespace(total_memory=total_gb * gb)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved_gb * gb)
    assert most_lanes(device, int(lane_gb * gb), share) == expected


def test_what_waits_for_the_device_is_an_error_only_while_it_is_watched(monkeypatch):
    modes = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    graphs = CudaGraphs(None)  # pyright: ignore[reportArgumentType] - no stream without a GPU
    seen = []

    def work():
        with graphs.watched():
            seen.append(modes[-1])
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        work()
    assert seen == ["error"]
    assert modes[-1] == 0
