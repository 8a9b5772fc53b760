"""Server in this process with its own client actors, which can alternate with another one."""

import contextlib
from collections.abc import Iterator

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rayfl.federation.server import Server
from rayfl.federation.specs import UnitsPerRound
from rayfl.prepared import Prepared
from rayfl.runtime.actors import make_server, stored
from rayfl.runtime.placement import Placement, ResourceRequest, place
from rayfl.runtime.pool import ActorPool


def placed(actors: int, cpus: float = 1) -> Placement:
    """Return the placement of client actors with these shares of a core."""
    request = ResourceRequest(num_actors=actors, cpus_per_actor=cpus, gpus_per_actor=0)
    return place(request, UnitsPerRound(actors, actors))


@contextlib.contextmanager
def served(prepared: Prepared, placement: Placement) -> Iterator[Server]:
    """Yield the server of an experiment, once its client actors are ready."""
    group = placement_group([placement.bundle] * placement.actors, strategy="PACK")
    assert group.wait(60), f"no room for {placement}"
    spec, client = prepared.specs()
    server = make_server(spec, stored(client), placement, group)
    assert isinstance(server.pool, ActorPool)
    pool = server.pool
    try:
        pool.describe()
        yield server
    finally:
        for actor in pool.actors:
            ray.kill(actor)
        remove_placement_group(group)
