"""The two places of a run's server and clients: a Ray cluster, or this process."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

import rayfl.runtime  # noqa: F401 - its settings must be there before anybody imports Ray
from rayfl.config.schema import Experiment
from rayfl.config.sections import Resources
from rayfl.federation.client import Client
from rayfl.federation.memories import AUTO_SHARE, MemoryRoom
from rayfl.federation.pool import LocalPool, Pool
from rayfl.federation.server import Server
from rayfl.federation.session import Session
from rayfl.prepared import Prepared
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.storage.memory_files import temporary_folder
from rayfl.training.process import configure_process, machine_memory, server_threads

if TYPE_CHECKING:
    from rayfl.runtime.actors import RemoteServer
    from rayfl.runtime.placement import Placement, ResourceRequest

Launch = Callable[
    [CheckpointWriter | None], contextlib.AbstractContextManager["RemoteServer | Session"]
]


@dataclass(frozen=True)
class Place:
    """The place an experiment runs at, before any actor of it starts."""

    prepared: Prepared
    """The experiment, with its data as they are held there."""
    placement: "Placement | str"
    session: Launch
    """Start the server and its clients."""
    pool: Callable[[], contextlib.AbstractContextManager[Pool]]
    """Start the clients alone, for units that this process makes."""


def connection(config: Experiment) -> contextlib.AbstractContextManager[object]:
    """Connection to Ray, which what runs on a cluster meanwhile shares. Raises ConfigError."""
    from rayfl.runtime import cluster

    return cluster.connected(**config.ray.model_dump())


@contextlib.contextmanager
def on_cluster(prepared: Prepared) -> Iterator[Place]:
    """Connect to Ray, and find a place for the actors. Raises ConfigError if they do not fit."""
    from rayfl.runtime import actors, cluster  # Ray takes a second to import
    from rayfl.runtime.placement import memory_bytes, place

    config = prepared.config
    limit = config.resources.time_limit_s
    with connection(config):
        placement = place(resource_request(config.resources), prepared.federation.units_per_round)
        dataset, data = cluster.put_dataset(prepared.data)
        prepared = replace(prepared, data=data)  # this process needs no copy of its own

        asked = config.resources.memories_gb
        most = memory_bytes(None if asked == "auto" else asked, placement)

        @contextlib.contextmanager
        def session(checkpoints: CheckpointWriter | None) -> Iterator["RemoteServer"]:
            server, client = prepared.specs()
            client = actors.stored(client, dataset)
            with (
                _room(most, checkpoints) as room,
                actors.server_actor(server, client, placement, checkpoints, limit, room) as remote,
            ):
                yield remote

        def pool() -> contextlib.AbstractContextManager[Pool]:
            _, client = prepared.specs()
            return actors.client_pool(actors.stored(client, dataset), placement, limit)

        yield Place(prepared, placement, session, pool)


@contextlib.contextmanager
def in_this_process(prepared: Prepared) -> Iterator[Place]:
    """The place of a run without Ray: every work unit runs in this process, on the GPU if there is one."""
    resources = prepared.config.resources
    cpus = 1 if resources.cpus_per_actor == "auto" else resources.cpus_per_actor
    on_gpu = torch.cuda.is_available() and resources.gpus_per_actor != 0
    threads_before = torch.get_num_threads()
    configure_process(server_threads(on_gpus=True) if on_gpu else max(1, math.floor(cpus)))

    def local_pool() -> LocalPool:
        _, client = prepared.specs()
        # A GPU fills pinned memory five times as fast, and what a client leaves needs no more room in it.
        return LocalPool(Client(client, "cuda" if on_gpu else "cpu", pinned=on_gpu))

    @contextlib.contextmanager
    def session(checkpoints: CheckpointWriter | None) -> Iterator[Session]:
        asked, spec = resources.memories_gb, prepared.specs()[0]
        most = AUTO_SHARE * machine_memory() if asked == "auto" else asked * 1e9
        if on_gpu:
            spec = spec._replace(federation=spec.federation.on_gpus())
        with _room(int(most), checkpoints) as room:
            server = Server(spec, local_pool(), room.tier(checkpoints))
            try:
                yield Session(server, checkpoints)
            finally:
                server.memories.close()

    def pool() -> contextlib.AbstractContextManager[Pool]:
        return contextlib.nullcontext(local_pool())

    try:
        what = "server and clients in this process, without Ray"
        yield Place(prepared, what, session, pool)
    finally:
        torch.set_num_threads(threads_before)


@contextlib.contextmanager
def _room(most_bytes: int, checkpoints: CheckpointWriter | None) -> Iterator[MemoryRoom]:
    """Room of the clients' memories, with a folder for them that is gone at the end if nothing is to stay."""
    with contextlib.nullcontext() if checkpoints else temporary_folder() as folder:
        yield MemoryRoom(most_bytes, folder)


def resource_request(resources: Resources) -> "ResourceRequest":
    """The section `resources` as the runtime asks for it: None for "auto"."""
    from rayfl.runtime.placement import ResourceRequest

    return ResourceRequest(
        num_actors=None if resources.num_actors == "auto" else resources.num_actors,
        cpus_per_actor=None if resources.cpus_per_actor == "auto" else resources.cpus_per_actor,
        gpus_per_actor=None if resources.gpus_per_actor == "auto" else resources.gpus_per_actor,
        autoscale_timeout_s=resources.autoscale_timeout_s,
    )
