"""Server in this process with its own client actors, which can alternate with another one."""

import contextlib
from collections.abc import Iterator

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rayfl.experiment import Prepared
from rayfl.federation.server import Server
from rayfl.runtime import cluster
from rayfl.runtime.placement import Demand, Placement, place
from rayfl.runtime.pool import ActorPool


def placed(actors: int, cpus: float = 1) -> Placement:
    """Return the placement of client actors with these shares of a core."""
    return place(Demand(num_actors=actors, cpus_per_actor=cpus, gpus_per_actor=0), actors)


@contextlib.contextmanager
def served(prepared: Prepared, placement: Placement) -> Iterator[Server]:
    """Yield the server of an experiment, once its client actors are ready."""
    group = placement_group([placement.bundle] * placement.actors, strategy="PACK")
    assert group.wait(60), f"no room for {placement}"
    server = cluster.make_server(*cluster.actor_arguments(prepared.job()), placement, group)
    assert isinstance(server.pool, ActorPool)
    pool = server.pool
    try:
        pool.describe()
        yield server
    finally:
        for actor in pool.actors:
            ray.kill(actor)
        remove_placement_group(group)
