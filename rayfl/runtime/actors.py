"""The server actor, the client actors beside it, and the driver's end of both."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayfl.errors import ConfigError, RunError, StateLostError, first_line
from rayfl.federation.memories import MemoryRoom, Tier
from rayfl.federation.metrics import Metrics
from rayfl.federation.server import Final, Server
from rayfl.federation.session import Session
from rayfl.federation.specs import ClientSpec, ServerSpec
from rayfl.runtime.client import ClientActor
from rayfl.runtime.placement import Placement, another_fits, refusal
from rayfl.runtime.pool import RETRIES, ActorPool
from rayfl.runtime.workers import DEATHS
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.training.process import configure_process, server_threads

PLACEMENT_TIMEOUT_S = 20
BUNDLE_SECONDS = 0.1


class ServerLostError(RunError):
    """The server actor, or state that it held, is gone."""


class ServerActor(Session):
    """The session as a Ray actor, with the client actors that were started beside it."""

    def __init__(
        self,
        server: ServerSpec,
        client: ClientSpec,
        placement: Placement,
        group: Any,
        started: Sequence[Any],
        checkpoints: CheckpointWriter | None,
        time_limit: float | None,
        memories: MemoryRoom | None,
    ):
        configure_process(threads=server_threads(on_gpus=placement.gpus > 0))
        tier = memories and memories.tier(checkpoints)
        made = make_server(
            *(server, client, placement, group),
            time_limit=time_limit,
            started=started,
            tier=tier,
        )
        super().__init__(made, checkpoints)

    def bundles(self) -> Iterator[list[Metrics]]:
        """Run, and yield the metrics of fast rounds together: a message costs the driver a millisecond."""
        bundle: list[Metrics] = []
        sent = time.monotonic()
        try:
            for metrics in self.run():
                bundle.append(metrics)
                if time.monotonic() - sent > BUNDLE_SECONDS:
                    yield bundle
                    bundle, sent = [], time.monotonic()
        except Exception:
            yield bundle  # what was finished before it went wrong
            raise
        yield bundle


def make_server(
    server: ServerSpec,
    client: ClientSpec,
    placement: Placement,
    group: Any,
    actors: Sequence[Any] = (),
    time_limit: float | None = None,
    started: Sequence[Any] = (),
    tier: Tier | None = None,
) -> Server:
    """A server with its client actors, one in each bundle of the placement group `group`.

    `client`: as `stored`. `actors`: client actors of an earlier server with the same placement, which begin
    anew instead of being started.
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
                ray.get(actor.begin.remote(*client))
                return actor
        return start(index)

    pool = ActorPool(
        placement.actors,
        spawn,
        another_fits=functools.partial(another_fits, placement),
        time_limit=time_limit,
    )
    federation = server.federation.on_gpus() if placement.gpus else server.federation
    return Server(server._replace(federation=federation), pool, tier)


def client_starter(client: ClientSpec, placement: Placement, group: Any) -> Callable[[int], Any]:
    """A function that starts the i-th client actor; `client`: as `stored`."""
    remote = ray.remote(ClientActor)
    threads = max(1, math.floor(placement.cpus))

    def start(index: int) -> Any:
        # Without a bundle, it came when the cluster grew, and may go anywhere.
        has_bundle = index < placement.actors
        options = remote.options(
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)
            if has_bundle
            else "DEFAULT",
            # Ray's head would keep a record of each work unit, 20 kB a round.
            enable_task_events=False,
        )
        return options.remote(threads, placement.gpus, *client)

    return start


class RemoteServer:
    """The driver's end of a server actor, which it starts again, from the last checkpoint, if it dies."""

    def __init__(self, start: Callable[[], Any]):
        self._start = start
        self._actor = start()
        self.deaths = 0

    def describe(self) -> list[dict[str, Any]]:
        """Each client actor, once all of them are ready."""
        with _errors_unwrapped():
            return ray.get(self._actor.describe.remote())

    def run(self) -> Iterator[Metrics]:
        """All metrics, as they come; after a death those since the last checkpoint come again."""
        reached, in_a_row = 0, 0
        while True:
            try:
                with _errors_unwrapped():
                    for ref in self._actor.bundles.options(num_returns="streaming").remote():
                        for metrics in ray.get(ref):
                            if metrics.round > reached:
                                reached, in_a_row = metrics.round, 0
                            yield metrics
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

    def final(self) -> Final:
        """Return what `Session.final` does."""
        with _errors_unwrapped():
            return ray.get(self._actor.final.remote())

    def close(self) -> None:
        ray.kill(self._actor)  # the client actors that it started go with their owner


@contextlib.contextmanager
def server_actor(
    server: ServerSpec,
    client: ClientSpec,
    placement: Placement,
    checkpoints: CheckpointWriter | None = None,
    time_limit: float | None = None,
    memories: MemoryRoom | None = None,
) -> Iterator[RemoteServer]:
    """A server actor and its client actors; all gone, and their resources free, at the end.

    The server goes on from the last of the `checkpoints`, if there is one already. A work unit that takes
    longer than `time_limit` seconds runs again, as one whose actor died. `client`: as `stored`. Without
    `memories` all clients' memories stay in the object store.
    """
    clients: list[Any] = []
    with _bundles(placement) as group:
        # Where the driver is: a local directory of checkpoints is one that both of them see.
        remote = ray.remote(ServerActor).options(num_cpus=0, resources=_of_this_node())
        start_client = client_starter(client, placement, group)

        def start() -> Any:
            """A server and its client actors, which need seconds each, at the same time."""
            for actor in clients:  # of a server that died: they may be at work for it
                ray.kill(actor)
            clients[:] = [start_client(index) for index in range(placement.actors)]
            return remote.remote(
                *(server, client, placement, group, list(clients), checkpoints, time_limit),
                memories,
            )

        remote_server: RemoteServer | None = None
        try:
            remote_server = RemoteServer(start)
            yield remote_server
        finally:
            if remote_server is not None:
                remote_server.close()
            for actor in clients:
                ray.kill(actor)


@contextlib.contextmanager
def client_pool(
    client: ClientSpec, placement: Placement, time_limit: float | None = None
) -> Iterator[ActorPool]:
    """A pool of client actors that this process gives its units to itself; gone at the end.

    The arguments are those of `server_actor`.
    """
    with _bundles(placement) as group:
        fits = functools.partial(another_fits, placement)
        start = client_starter(client, placement, group)
        pool = ActorPool(placement.actors, start, fits, time_limit)
        try:
            yield pool
        finally:
            for actor in pool.actors:
                ray.kill(actor)


@contextlib.contextmanager
def _bundles(placement: Placement) -> Iterator[Any]:
    """The placement group of the client actors, once it is there."""
    group = placement_group([placement.bundle] * placement.actors, strategy="PACK")
    try:
        waited_s = max(PLACEMENT_TIMEOUT_S, placement.autoscale_timeout_s)
        if not group.wait(waited_s):
            raise refusal(placement, waited_s)
        yield group
    finally:
        remove_placement_group(group)


def _of_this_node() -> dict[str, float]:
    """A resource that no other node has. Ray's affinity to a node is lost on nodes that have just joined."""
    here = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    own = (name for name in resources if name.startswith("node:") and "__" not in name)
    return dict.fromkeys(own, 0.001)


def stored(client: ClientSpec, dataset: Any = None) -> ClientSpec:
    """The spec with references in place of what every node maps once.

    `dataset`: reference to the data, where they are in the object store already.
    """
    return client._replace(
        model=ray.put(client.model),
        dataset=ray.put(client.dataset) if dataset is None else dataset,
        partition=ray.put(client.partition),
    )


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
