"""Connects to Ray, places the actors of an experiment, and runs its server there."""

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before Ray starts anything: its workers run at nice 15 by default, and lose to any other process.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# An actor without a GPU must not see one.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
if "ray" not in sys.modules and (Path.home() / ".ray/auth_token").exists():
    # Once the file exists `ray start` asks for this token, but a driver that joins sends it only in this
    # mode, which Ray reads when it is imported. A cluster that asks for none does not mind.
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import nn

from rayfl.algorithms.base import Algorithm
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError, RunError, first_line
from rayfl.runtime.client import Client
from rayfl.runtime.pool import ActorPool
from rayfl.runtime.server import Federation, Record, Server
from rayfl.training.engine import LocalSettings, configure_process

PLACEMENT_TIMEOUT_S = 20
BUNDLE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the client actors of one experiment ask for."""

    num_actors: int | None
    """None: as many as the cluster has room for, but no more than there are work units in a round."""
    cpus_per_actor: float | None
    """None: 1, or the half or quarter that lets `num_actors` fit. The whole part of it is the number of
    threads, which kernels may take as a reason to round differently; nothing else here changes a result."""
    gpus_per_actor: float | None
    """None: a quarter of a GPU where the cluster has any, else none."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Client actors that fit: how many, and each one's share."""

    actors: int
    cpus: float
    gpus: float
    nodes: int

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        share = f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")
        of = f"{self.nodes} node" + ("s" if self.nodes > 1 else "")
        return f"1 server actor, {self.actors} client actors with {share} each, on {of}"


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connection to the running cluster at `address`, or to a fresh one on this machine for None."""
    if (
        ray.is_initialized()
    ):  # a notebook, or the tests: the caller's connection, and theirs to close
        yield
        return
    try:
        _check_reachable(address)
        with _signals_wait() if address is None else contextlib.nullcontext():
            ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"ray.address = {address!r}: no Ray cluster answers there ({first_line(error)}); start one "
            "with `ray start --head`, or leave ray.address empty to start one for this run (a cluster of "
            "another machine or user may want its token in ~/.ray/auth_token)"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """OSError within seconds if nobody listens at the address; Ray itself would try for minutes."""
    if address == "auto":
        # Where `ray start` notes its address; it may note a cluster that is gone.
        noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray/ray_current_cluster"
        address = os.environ.get("RAY_ADDRESS") or (noted.read_text() if noted.exists() else None)
    host, _, port = (address or "").strip().rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5).close()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """SIGINT and SIGTERM wait while Ray starts: interrupted half-way, it crashes when Python exits.

    They get their handlers back too: Ray replaces SIGTERM's by one that exits at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda number, frame: received.append(number)) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def place(wanted: Resources, units_per_round: int) -> Placement:
    """How many client actors fit on the connected cluster.

    Raises ConfigError if not even one does, or if fewer fit than `num_actors` asks for.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = wanted.gpus_per_actor
    if gpus is None:
        gpus = 0.25 if any(node.get("GPU", 0) > 0 for node in nodes) else 0.0
    for cpus in [wanted.cpus_per_actor] if wanted.cpus_per_actor else [1.0, 0.5, 0.25]:
        slots = [_slots(node, cpus, gpus) for node in nodes]
        room = sum(slots)
        if room and room >= (wanted.num_actors or 1):
            actors = wanted.num_actors or min(room, units_per_round)
            used = sum(1 for count in slots if count)
            return Placement(actors=actors, cpus=cpus, gpus=gpus, nodes=min(used, actors))
    asked = f"{wanted.num_actors or 1} client actors with {cpus:g} CPU"
    asked += f" and {gpus:g} GPU each" if gpus else " each"
    has = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
    raise ConfigError(
        f"resources.num_actors = {wanted.num_actors or 'auto'}: {asked} do not fit; the cluster's "
        f"nodes have [{has}], room for {room}; lower resources.num_actors, cpus_per_actor or "
        "gpus_per_actor, or add nodes"
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a server and its client actors work on."""

    algorithm: Algorithm
    name: str
    """Of the algorithm, as users write it."""
    model: nn.Module
    initial: tuple[np.ndarray, np.ndarray]
    """First w `[P]` and buffers `[Q]`."""
    data: tuple[Dataset, Partition]
    settings: LocalSettings
    federation: Federation


class ServerActor:
    """The server as a Ray actor, which owns the client actors."""

    def __init__(
        self,
        server: dict[str, Any],
        client: dict[str, Any],
        placement: Placement,
        group: Any,
    ):
        configure_process(threads=1)
        remote = ray.remote(Client)
        arguments = {
            **client,
            "threads": max(1, math.floor(placement.cpus)),
            "gpu_fraction": placement.gpus,
        }

        def spawn(index: int) -> Any:
            options = remote.options(
                num_cpus=placement.cpus,
                num_gpus=placement.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
            )
            return options.remote(**arguments)

        self.pool = ActorPool(placement.actors, spawn)
        self.server = Server(**server, pool=self.pool)

    def describe(self) -> list[dict[str, Any]]:
        """Where the client actors run, once all of them are ready."""
        return ray.get([actor.describe.remote() for actor in self.pool.actors])

    def run(self) -> Iterator[list[Record]]:
        """All records, those of fast rounds bundled: each message costs the driver a millisecond."""
        bundle, sent = [], time.monotonic()
        try:
            for record in self.server.run():
                bundle.append(record)
                if time.monotonic() - sent > BUNDLE_SECONDS:
                    yield bundle
                    bundle, sent = [], time.monotonic()
        except Exception:
            yield bundle  # what was finished before it went wrong
            raise
        yield bundle

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        return self.server.parameters()

    def correct(self) -> np.ndarray | None:
        return self.server.correct


class RemoteServer:
    """The driver's end of a server actor."""

    def __init__(self, actor: Any):
        self._actor = actor

    def describe(self) -> list[dict[str, Any]]:
        """Where the client actors run, once all of them are ready."""
        with _errors_unwrapped():
            return ray.get(self._actor.describe.remote())

    def run(self) -> Iterator[Record]:
        """All rounds' records, as they come."""
        with _errors_unwrapped():
            for ref in self._actor.run.options(num_returns="streaming").remote():
                yield from ray.get(ref)

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        with _errors_unwrapped():
            return ray.get(self._actor.parameters.remote())

    def correct(self) -> np.ndarray | None:
        """Which test samples the last evaluated w predicts correctly, bool `[n]`; None before."""
        with _errors_unwrapped():
            return ray.get(self._actor.correct.remote())


@contextlib.contextmanager
def launched(job: Job, placement: Placement) -> Iterator[RemoteServer]:
    """A server actor and its client actors; all gone, and their resources free, at the end."""
    group = placement_group([placement.bundle] * placement.actors, strategy="PACK")
    actor: Any = None
    try:
        if not group.wait(PLACEMENT_TIMEOUT_S):
            free = ray.available_resources()
            raise ConfigError(
                f"resources.num_actors = {placement.actors}: the cluster could hold {placement}, but "
                f"its resources are in use (free: {free.get('CPU', 0):g} CPU, "
                f"{free.get('GPU', 0):g} GPU, after {PLACEMENT_TIMEOUT_S} s); wait, or ask for less"
            )
        both = {"algorithm": job.algorithm, "name": job.name}
        w, buffers = job.initial
        server = both | {"w": w, "buffers": buffers, "federation": job.federation}
        # The server passes the references on: every node maps one copy of the data.
        stored = {"model": ray.put(job.model), "data": ray.put(job.data)}
        client = both | stored | {"settings": job.settings}
        remote = ray.remote(ServerActor).options(num_cpus=0)
        actor = remote.remote(server, client, placement, group)
        yield RemoteServer(actor)
    finally:
        if actor is not None:
            ray.kill(actor)  # its client actors go with their owner
        remove_placement_group(group)


@contextlib.contextmanager
def _errors_unwrapped() -> Iterator[None]:
    """Errors of the server as they were raised there, without Ray's wrapping."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, (ConfigError, RunError)):
            raise error.cause from None
        raise RunError(f"the server actor failed: {error}") from error
    except RayActorError as error:
        raise RunError(f"the server actor died: {first_line(error)}") from error


def _slots(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Client actors with these shares that fit on a node."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return by_cpu
    on_node = math.floor(node.get("GPU", 0))
    # A fraction comes from one GPU, so what is left over on each is lost.
    by_gpu = on_node * math.floor(1 / gpus + 1e-9) if gpus <= 1 else math.floor(on_node / gpus)
    return min(by_cpu, by_gpu)
