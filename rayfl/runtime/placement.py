"""Room for client actors on the connected cluster, and how many are to make it grow."""

import math
from dataclasses import dataclass
from functools import partial

import ray

from rayfl.errors import ConfigError
from rayfl.federation.memories import AUTO_SHARE
from rayfl.federation.specs import UnitsPerRound


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """Resources that the client actors of one experiment ask for."""

    # None: as many as the cluster has room for, but no more than there are work units in a round.
    num_actors: int | None
    # None: 1, or the half or quarter that lets `num_actors` fit. Its whole part is the number of threads,
    # which kernels may take as a reason to round differently; nothing else here changes a result.
    cpus_per_actor: float | None
    gpus_per_actor: float | None  # None: a GPU where the cluster has any, else none
    # Seconds for an autoscaler to add the nodes that are missing. 0: what does not fit is an error.
    autoscale_timeout_s: float = 0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Client actors that fit: how many, and each one's share."""

    actors: int
    cpus: float
    gpus: float
    nodes: int  # 0: they do not fit on the nodes that there are, and wait for new ones
    autoscale_timeout_s: float = 0
    most: int = 0  # actors that would have work, if the cluster grows; 0: no more than `actors`

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def share(self) -> str:
        return f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")

    def __str__(self) -> str:
        on = f"on {self.nodes} node" + ("s" if self.nodes > 1 else "")
        if not self.nodes:
            on = f"on nodes that the cluster has to add (waiting up to {self.autoscale_timeout_s:g} s)"
        actors = f"{self.actors} client actors with {self.share} each"
        if self.actors == 1:
            actors = f"1 client actor with {self.share}"
        return f"1 server actor, {actors}, {on}"


def place(request: ResourceRequest, units_per_round: UnitsPerRound) -> Placement:
    """Find room for client actors on the connected cluster.

    What its nodes have no room for may wait for an autoscaler, which adds nodes for a request that is
    made. How far a cluster can grow is nothing that Ray tells, so this needs a number of actors (and
    their share of a GPU) and a time: `request.autoscale_timeout_s`.

    Raises ConfigError if not even one actor fits, or if fewer fit than `num_actors` asks for, and
    there is nothing to wait for.
    """
    nodes = _alive()
    gpus = request.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) > 0 for node in nodes) else 0.0
    units = units_per_round.on_gpus if gpus else units_per_round.on_cpus
    waits = request.autoscale_timeout_s > 0 and request.num_actors is not None
    # A cluster that may grow gets a new node before actors share a CPU.
    shares = [request.cpus_per_actor or 1.0]
    if request.cpus_per_actor is None and not waits:
        shares += [0.5, 0.25]
    for cpus in shares:
        slots = [room_on(node, cpus, gpus) for node in nodes]
        room = sum(slots)
        fits = 0 < room >= (request.num_actors or 1)
        if fits or waits:
            actors = request.num_actors or min(room, units)
            used = min(sum(1 for count in slots if count), actors) if fits else 0
            most = 0 if request.num_actors else units
            return Placement(
                actors=actors,
                cpus=cpus,
                gpus=gpus,
                nodes=used,
                autoscale_timeout_s=request.autoscale_timeout_s,
                most=most,
            )
    asked = f"{request.num_actors or 1} client actors with {cpus:g} CPU"
    asked += f" and {gpus:g} GPU each" if gpus else " each"
    has = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
    how = (
        "resources.num_actors must be a number"
        if request.autoscale_timeout_s
        else "resources.autoscale_timeout_s"
    )
    advice = (
        "lower resources.num_actors, cpus_per_actor or gpus_per_actor, or add nodes (to wait for those "
        f"of an autoscaler: {how})"
    )
    raise ConfigError(
        f"{asked} do not fit; the cluster's nodes have [{has}], room for {room}; {advice}",
        key="resources.num_actors",
        value=request.num_actors or "auto",
        keys=("resources.autoscale_timeout_s",),
    )


def memory_bytes(asked_gb: float | None, placement: Placement, experiments: int = 1) -> int:
    """Bytes of the object store for the clients' memories of one of so many concurrent experiments.

    Raises ConfigError if it is asked for more than its part of the store.
    """
    stores = [node.get("object_store_memory", 0.0) for node in _alive()]
    room = min(min(stores) * max(1, placement.nodes), sum(stores) / experiments)
    if asked_gb is None:
        return int(AUTO_SHARE * room)
    if asked_gb * 1e9 > room:
        raise ConfigError(
            key="resources.memories_gb",
            value=asked_gb,
            allowed=f"at most {room / 1e9:.3g}, the object store "
            + (f"over {experiments} trials" if experiments > 1 else "of the nodes in use"),
            hint="lower it, or give ray.object_store_gb (of a running cluster: `ray start "
            "--object-store-memory`)",
            keys=("ray.object_store_gb",),
        )
    return int(asked_gb * 1e9)


def could_hold(placement: Placement) -> bool:
    """Return true if the living nodes have room for all client actors, in use or not."""
    return sum(room_on(n, placement.cpus, placement.gpus) for n in _alive()) >= placement.actors


def another_fits(placement: Placement, actors: int) -> bool:
    """Return true if one more client actor than these `actors` has work, and room by now."""
    if actors >= placement.most:
        return False
    free = ray.available_resources()
    return all(free.get(name, 0) >= amount for name, amount in placement.bundle.items())


def refusal(placement: Placement, waited_s: float) -> ConfigError:
    """The error of a placement that the cluster did not have within `waited_s`."""
    free = ray.available_resources()
    has = f"(free: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU, after {waited_s:g} s)"
    refuse = partial(ConfigError, key="resources.num_actors", value=placement.actors)
    if placement.nodes:
        return refuse(
            f"the cluster could hold {placement}, but its resources are in use {has}; wait, "
            "or ask for less"
        )
    return refuse(
        f"the cluster did not grow to hold {placement.actors} client actors with "
        f"{placement.share} each {has}; ask for less, raise "
        f"resources.autoscale_timeout_s = {placement.autoscale_timeout_s:g}, "
        "or see `ray status` for what the autoscaler says",
        keys=("resources.autoscale_timeout_s",),
    )


def room_on(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Client actors with these shares that fit on a node."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return by_cpu
    on_node = math.floor(node.get("GPU", 0))
    # A fraction comes from one GPU, so what is left over on each is lost.
    by_gpu = on_node * math.floor(1 / gpus + 1e-9) if gpus <= 1 else math.floor(on_node / gpus)
    return min(by_cpu, by_gpu)


def _alive() -> list[dict[str, float]]:
    """The resources of each node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
