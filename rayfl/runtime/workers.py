"""The places of a pool and the actors that hold them: started, replaced when they die, more as nodes join."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from rayfl.errors import RunError

# Time between two looks for room and for units that take too long.
LOOK_SECONDS = 1.0
# Without a single ready actor for so long, a run ends: new machines take minutes, not more.
START_SECONDS = 900.0
# An actor that dies while it starts costs nothing but the start.
START_RETRIES = 10
# Ray raises these for the calls of an actor that died; of its own accord it ends one to free memory.
DEATHS = (RayActorError, OutOfMemoryError)


@dataclass(eq=False)
class Worker:
    """One place of the pool, and the actor that holds it now."""

    index: int
    actor: Any
    starting: Any  # reference to the actor's description; None once it is ready
    node: str = ""  # id of its node, once it is ready
    load: int = 0  # units that it has been given
    since: float = 0.0  # when its current unit began
    failed_starts: int = 0


class Workers:
    """All places of a pool; `spawn(i)` starts the i-th one's actor, again when it has died.

    `size` actors are started at once. More are added, one at a time, as long as `another_fits(n)` beside
    the n that there are: it is asked every second. An actor whose unit takes longer than `time_limit`
    seconds is killed.
    """

    def __init__(
        self,
        size: int,
        spawn: Callable[[int], Any],
        another_fits: Callable[[int], bool],
        time_limit: float | None,
    ):
        self.described: list[dict[str, Any]] = []  # each actor that has become ready
        self.moved = self._looked = time.monotonic()  # when anything has last come back
        self._spawn, self._another_fits, self._time_limit = spawn, another_fits, time_limit
        self._all: list[Worker] = []
        for _ in range(size):
            self._grow()

    @property
    def actors(self) -> list[Any]:
        """The actors of now, ready or not."""
        return [worker.actor for worker in self._all]

    def ready(self) -> list[Worker]:
        return [worker for worker in self._all if worker.starting is None]

    def starting(self) -> dict[Any, Worker]:
        """Workers that are not ready, by the reference that tells when they are."""
        return {worker.starting: worker for worker in self._all if worker.starting is not None}

    def homes(self, here: str, units: int) -> list[str | None]:
        """The node for each unit: neighbours go to the same one, as many as it has actors for.

        The node `here` comes first. None for each, if no actor is ready.
        """
        nodes = [worker.node for worker in self.ready()]
        order = [here, *nodes]
        ranked = sorted(nodes, key=order.index)
        return [
            ranked[int((i + 0.5) * len(ranked) / units)] if ranked else None for i in range(units)
        ]

    def replace(self, worker: Worker) -> None:
        ray.kill(worker.actor)  # one that was only out of reach must not come back
        worker.actor, worker.load = self._spawn(worker.index), 0
        worker.starting = worker.actor.describe.remote()

    def started(self, worker: Worker, ref: Any) -> None:
        """Take the description of an actor that was starting; RunError if none can start."""
        try:
            described: Any = ray.get(ref)
        except DEATHS as error:
            worker.failed_starts += 1
            raised = getattr(error, "actor_init_failed", False)
            if raised or worker.failed_starts > START_RETRIES:
                raise RunError(f"a client actor could not start: {error}") from error
            self.replace(worker)
            return
        worker.node = described.pop("node_id")
        self._check_kernels(described)
        self.described.append(described)
        worker.starting, worker.failed_starts = None, 0

    def look_around(self) -> None:
        """Every second: is there room for another actor, and does one take too long?"""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if not self.starting() and self._another_fits(len(self._all)):
            self._grow()
        if self._time_limit is not None:
            for worker in self._all:
                if worker.load and now - worker.since > self._time_limit:
                    ray.kill(worker.actor)  # its units come back as those of one that died
        if not self.ready() and now - self.moved > START_SECONDS:
            raise RunError(
                f"no client actor could start within {START_SECONDS / 60:.0f} minutes; the cluster's nodes "
                "have no room for any, or are gone"
            )

    def _grow(self) -> None:
        actor = self._spawn(len(self._all))
        self._all.append(Worker(len(self._all), actor, actor.describe.remote()))

    def _check_kernels(self, described: dict[str, Any]) -> None:
        """RunError if this actor rounds differently from the others: no result may depend on who made it."""
        for other in self.described[:1]:
            if bool(other["kernels"]) != bool(described["kernels"]):
                without = other if other["kernels"] else described
                raise RunError(
                    f"the client actors compute with different kernels: node {without['node']} cannot "
                    f"use those of rayfl, others can ({without['kernels']}; Triton needs a C compiler)"
                )
