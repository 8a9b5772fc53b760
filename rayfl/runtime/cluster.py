"""Connects to Ray, places the actors of an experiment, and runs its server there."""

import contextlib
import functools
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before Ray starts anything: its workers run at nice 15 by default, and lose to any other process.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Objects that nobody needs any more stay for a second, which is some rounds: hundreds of MB for ResNet-18.
os.environ.setdefault("RAY_free_objects_period_milliseconds", "100")
# An actor without a GPU must not see one.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
if "ray" not in sys.modules and os.path.exists(os.path.expanduser("~/.ray/auth_token")):
    # Once the file exists `ray start` asks for this token, but a driver that joins sends it only in this
    # mode, which Ray reads when it is imported. A cluster that asks for none does not mind.
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import numpy as np
import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayfl.algorithms.base import Algorithm
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError, RunError, StateLostError, first_line
from rayfl.federation.history import History
from rayfl.federation.server import Federation, Record, Server
from rayfl.runtime.client import Client
from rayfl.runtime.placement import Placement, another_fits, refusal
from rayfl.runtime.pool import DEATHS, RETRIES, ActorPool
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.training.engine import LocalSettings
from rayfl.training.process import configure_process

PLACEMENT_TIMEOUT_S = 20
BUNDLE_SECONDS = 0.1


@contextlib.contextmanager
def connected(address: str | None, object_store_gb: float | None = None) -> Iterator[None]:
    """Connection to the running cluster at `address`, or to a fresh one on this machine for None.

    `object_store_gb` is the memory of the fresh one's object store; None: Ray chooses.
    """
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
                object_store_memory=int(object_store_gb * 1e9) if object_store_gb else None,
            )
    except Exception as error:  # Ray raises plain ones too
        if address is None:
            raise _not_started(object_store_gb, error) from error
        raise ConfigError(
            f"ray.address = {address!r}: no Ray cluster answers there ({first_line(error)}); start one "
            "with `ray start --head`, or leave ray.address empty to start one for this run (a cluster of "
            "another machine or user may want its token in ~/.ray/auth_token)"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _not_started(object_store_gb: float | None, error: Exception) -> ConfigError:
    """Why no cluster of this run's own could be started."""
    if object_store_gb is not None and isinstance(error, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        return ConfigError(
            f"ray.object_store_gb = {object_store_gb:g}: must leave room for the processes in the "
            f"{total:.1f} GB of this machine; lower it, or leave it out"
        )
    return ConfigError(
        f"Ray did not start on this machine ({first_line(error)}); its logs are in "
        "/tmp/ray/session_latest/logs; is the machine busy, or out of memory or disk? Try again, or start "
        "Ray with `ray start --head` and give ray.address=auto"
    )


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


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a server and its client actors work on."""

    algorithm: Algorithm
    name: str
    """Of the algorithm, as users write it."""
    model: bytes
    """As `packed`."""
    initial: tuple[np.ndarray, np.ndarray]
    """First w `[P]` and buffers `[Q]`."""
    data: tuple[Dataset, Partition]
    settings: LocalSettings
    federation: Federation


class ServerLostError(RunError):
    """The server actor, or state that it held, is gone."""


class ServerActor:
    """The server as a Ray actor, with the client actors that were started beside it."""

    def __init__(
        self,
        server: dict[str, Any],
        client: dict[str, Any],
        placement: Placement,
        group: Any,
        started: Sequence[Any],
        checkpoints: CheckpointWriter | None,
        time_limit: float | None,
    ):
        configure_process(threads=1)
        self.server = make_server(
            server, client, placement, group, time_limit=time_limit, started=started
        )
        self.checkpoints = checkpoints
        self.history = History()

    def describe(self) -> list[dict[str, Any]]:
        """Where the client actors run, once all of them are ready."""
        return self.server.pool.describe()

    def run(self) -> Iterator[list[Record]]:
        """The records of all rounds, from the last checkpoint on if there is one, after those it holds.

        Those of fast rounds are bundled: each message costs the driver a millisecond.
        """
        bundle, sent = self._restored(), time.monotonic()
        try:
            for record in self.server.run():
                bundle.append(self._noted(record))
                # The record of a round that is done; that of an evaluation comes later.
                done = record.round == self.server.round and "train/loss" in record.metrics
                if done and self._is_due(record.round):
                    bundle += map(self._noted, self.server.settle())
                    self._save()
                if time.monotonic() - sent > BUNDLE_SECONDS:
                    yield bundle
                    bundle, sent = [], time.monotonic()
            self._save()
        except Exception:
            yield bundle  # what was finished before it went wrong
            raise
        yield bundle

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        return self.server.parameters()

    def correct(self) -> np.ndarray | None:
        return self.server.correct

    def _restored(self) -> list[Record]:
        """Go on from the last checkpoint, if there is one; the records of its rounds."""
        saved = self.checkpoints.latest() if self.checkpoints else None
        if saved is None:
            return []
        self.server.restore(saved.snapshot())
        return [self._noted(Record(*row)) for row in saved.history().items()]

    def _noted(self, record: Record) -> Record:
        self.history.add(*record)
        return record

    def _is_due(self, round: int) -> bool:
        return self.checkpoints is not None and self.checkpoints.due(round)

    def _save(self) -> None:
        if self.checkpoints is not None and self.checkpoints.round != self.server.round:
            self.checkpoints.save(self.server.snapshot(), self.history.rows)


def make_server(
    server: dict[str, Any],
    client: dict[str, Any],
    placement: Placement,
    group: Any,
    actors: Sequence[Any] = (),
    time_limit: float | None = None,
    started: Sequence[Any] = (),
) -> Server:
    """A server with its client actors, one in each bundle of the placement group `group`.

    `server`, `client`: arguments of `Server` (without the pool) and of `Client.begin`. `actors`: client
    actors of an earlier server with the same placement, which begin anew instead of being started.
    `time_limit`: seconds that a work unit may take. `started`: client actors that are on their way for
    this server already.
    """
    start = client_starter(client, placement, group)
    idle, on_their_way = dict(enumerate(actors)), dict(enumerate(started))

    def spawn(index: int) -> Any:
        if index in on_their_way:
            return on_their_way.pop(index)
        if index in idle:
            actor = idle.pop(index)
            with contextlib.suppress(*DEATHS):  # it has died since
                ray.get(actor.begin.remote(**client))
                return actor
        return start(index)

    pool = ActorPool(
        placement.actors,
        spawn,
        another_fits=functools.partial(another_fits, placement),
        time_limit=time_limit,
    )
    return Server(**server, pool=pool)


def client_starter(
    client: dict[str, Any], placement: Placement, group: Any
) -> Callable[[int], Any]:
    """What starts the i-th client actor; `client`: arguments of `Client.begin`."""
    remote = ray.remote(Client)
    share = {"threads": max(1, math.floor(placement.cpus)), "gpu_fraction": placement.gpus}

    def start(index: int) -> Any:
        # Without a bundle, it came when the cluster grew, and may go anywhere.
        has_bundle = index < placement.actors
        options = remote.options(
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)
            if has_bundle
            else "DEFAULT",
        )
        return options.remote(**share, **client)

    return start


class RemoteServer:
    """The driver's end of a server actor, which it starts again, from the last checkpoint, if it dies."""

    def __init__(self, start: Callable[[], Any]):
        self._start = start
        self._actor = start()
        self.deaths = 0

    def describe(self) -> list[dict[str, Any]]:
        """Where the client actors run, once all of them are ready."""
        with _errors_unwrapped():
            return ray.get(self._actor.describe.remote())

    def run(self) -> Iterator[Record]:
        """All rounds' records, as they come; after a death those since the last checkpoint come again."""
        reached, in_a_row = 0, 0
        while True:
            try:
                with _errors_unwrapped():
                    for ref in self._actor.run.options(num_returns="streaming").remote():
                        for record in ray.get(ref):
                            if record.round > reached:
                                reached, in_a_row = record.round, 0
                            yield record
                return
            except ServerLostError as error:
                in_a_row += 1
                if in_a_row > RETRIES:
                    raise RunError(
                        f"{error}; {in_a_row} times in a row at round {reached}"
                    ) from error
                self.deaths += 1
                self.close()
                self._actor = self._start()

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """w `[P]` and buffers `[Q]`."""
        with _errors_unwrapped():
            return ray.get(self._actor.parameters.remote())

    def correct(self) -> np.ndarray | None:
        """Which test samples the last evaluated w predicts correctly, bool `[n]`; None before."""
        with _errors_unwrapped():
            return ray.get(self._actor.correct.remote())

    def close(self) -> None:
        ray.kill(self._actor)  # the client actors that it started go with their owner


@contextlib.contextmanager
def launched(
    job: Job,
    placement: Placement,
    checkpoints: CheckpointWriter | None = None,
    time_limit: float | None = None,
    dataset: Any = None,
) -> Iterator[RemoteServer]:
    """A server actor and its client actors; all gone, and their resources free, at the end.

    The server goes on from the last of the `checkpoints`, if there is one already. A work unit that takes
    longer than `time_limit` seconds runs again, as one whose actor died. `dataset`: as `actor_arguments`.
    """
    group = placement_group([placement.bundle] * placement.actors, strategy="PACK")
    clients: list[Any] = []
    server: RemoteServer | None = None
    try:
        waited_s = max(PLACEMENT_TIMEOUT_S, placement.autoscale_timeout_s)
        if not group.wait(waited_s):
            raise refusal(placement, waited_s)
        arguments = actor_arguments(job, dataset)
        # Where the driver is: a local directory of checkpoints is one that both of them see.
        remote = ray.remote(ServerActor).options(num_cpus=0, resources=_of_this_node())
        start_client = client_starter(arguments[1], placement, group)

        def start() -> Any:
            """A server and its client actors, which need seconds each, at the same time."""
            for actor in clients:  # of a server that died: they may be at work for it
                ray.kill(actor)
            clients[:] = [start_client(index) for index in range(placement.actors)]
            return remote.remote(
                *arguments, placement, group, list(clients), checkpoints, time_limit
            )

        server = RemoteServer(start)
        yield server
    finally:
        if server is not None:
            server.close()
        for actor in clients:
            ray.kill(actor)
        remove_placement_group(group)


def _of_this_node() -> dict[str, float]:
    """A resource that no other node has. Ray's affinity to a node is lost on nodes that have just joined."""
    here = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    own = (name for name in resources if name.startswith("node:") and "__" not in name)
    return dict.fromkeys(own, 0.001)


def share(data: Dataset) -> tuple[Any, Dataset]:
    """A reference to the data in the object store, and the data as they are there, read-only."""
    dataset = ray.put(data)
    return dataset, ray.get(dataset)


def actor_arguments(job: Job, dataset: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `Server` and of `Client.begin` for `make_server`.

    `dataset`: reference to the data, where they are in the object store already.
    """
    both = {"algorithm": job.algorithm, "name": job.name}
    w, buffers = job.initial
    server = both | {"w": w, "buffers": buffers, "federation": job.federation}
    # The server passes the references on: every node maps one copy of the data.
    data, partition = job.data
    stored = {
        "model": ray.put(job.model),
        "dataset": ray.put(data) if dataset is None else dataset,
        "partition": ray.put(partition),
    }
    return server, both | stored | {"settings": job.settings}


@contextlib.contextmanager
def _errors_unwrapped() -> Iterator[None]:
    """Errors of the server as they were raised there, without Ray's wrapping."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, StateLostError):
            raise ServerLostError(str(error.cause)) from error
        if isinstance(error.cause, (ConfigError, RunError)):
            raise error.cause from None
        raise RunError(f"the server actor failed: {error}") from error
    except DEATHS as error:
        if getattr(error, "actor_init_failed", False):
            raise RunError(f"the server actor could not start: {error}") from error
        raise ServerLostError(f"the server actor died: {first_line(error)}") from error
