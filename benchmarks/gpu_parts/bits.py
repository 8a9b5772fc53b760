"""Equal bits on one device: recorded or not, one client at a time or several, and once more.

What is compared is a SHA-256 over everything that a run ends with: parameters, buffers, the server's state,
each client's memory, and which test samples are right.
"""

import gc
import hashlib
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu_parts.images import random_images, write
from benchmarks.gpu_parts.log import Log
from benchmarks.gpu_parts.setup import Setup
from rayfl.algorithms import ALGORITHMS
from rayfl.algorithms.base import Algorithm
from rayfl.config.schema import load_config
from rayfl.federation.client import Client
from rayfl.federation.pool import LocalPool
from rayfl.federation.server import Server
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.training.process import configure_process

FIRST = ("fedwmsam", "fedavg", "fednsam", "scaffold")
LANES = 3
# Batches of 8; equal sizes are no multiple of it either.
EQUAL = {"name": "dirichlet", "alpha": 0.3}
RAGGED = {"name": "dirichlet_per_class", "alpha": 0.5, "min_samples": 9}


class Ended(NamedTuple):
    """What a run ended with."""

    sha256: str
    engine: str
    refused: str | None


def run(setup: Setup, log: Log) -> None:
    configure_process(threads=1)
    images = setup.out / "images16.npz"
    write(images, random_images(100, size=16))
    common = {"name": "npz", "path": str(images), "augment": "flip_crop"}
    prepared = _prepared(common, {"name": "lenet5"}, EQUAL)
    _twice(setup, log, prepared)
    net = {"name": "benchmarks.gpu_parts.models:dropout_net"}
    models = (
        ("ragged clients", {"name": "lenet5"}, RAGGED, "fedwmsam"),
        ("dropout", net, EQUAL, "fedwmsam"),
        ("BatchNorm", {"name": "resnet18", "norm": "batch"}, EQUAL, "fedavg"),
        ("ragged clients", {"name": "lenet5"}, RAGGED, "scaffold"),
    )
    why_not: dict[str, str | None] = {}
    for name in FIRST:
        why_not[name] = _compare(setup, log, name, prepared, ALGORITHMS[name]())
    for what, model, partition, method in models:
        title, own = f"{what}, {method}", _prepared(common, model, partition)
        why_not[title] = _compare(setup, log, title, own, ALGORITHMS[method]())
    rest = [name for name in ALGORITHMS if name not in FIRST]
    for i, name in enumerate(rest):
        if setup.left < 3:
            log.note("left out, no time", ", ".join(rest[i:]))
            break
        why_not[name] = _compare(setup, log, name, prepared, ALGORITHMS[name]())
    if setup.small:
        return
    # Layers with numbers or statistics of their own may be taken step by step.
    free = {f"{what}, {method}" for what, _, partition, method in models if partition is EQUAL}
    eager = [f"{name}: {why}" for name, why in why_not.items() if why and name not in free]
    log.check("all methods are recorded", not eager, "; ".join(eager))
    for name in free:
        log.note(f"{name}: recorded", why_not[name] or "yes")


def _prepared(data: Any, model: Any, partition: Any) -> Prepared:
    """Two rounds of three clients out of four."""
    return prepare(
        load_config(
            {
                "data": data,
                "model": model,
                "partition": partition,
                "algorithm": {"name": "fedavg"},
                "federation": {
                    "clients": 4,
                    "cohort": 3,
                    "clients_per_unit": 3,
                    "rounds": 2,
                    "batch_size": 8,
                    "local_epochs": 1,
                    "lr": 0.05,
                    "weight_decay": 0.001,
                    "clip_norm": 10,
                },
                "tracking": {"enabled": False},
                "checkpoint": {"every": None},
            }
        )
    )


def _compare(
    setup: Setup, log: Log, what: str, prepared: Prepared, algorithm: Algorithm
) -> str | None:
    """Compare the same run with recordings and without, with one lane and with some.

    Why its steps were not recorded, or None.
    """
    eager = _ended(setup, prepared, algorithm, cuda_graphs=False, lanes=1)
    some = _ended(setup, prepared, algorithm, cuda_graphs=True, lanes=LANES)
    sides = {f"{LANES} lanes": some}
    if not setup.small:  # a CPU records nothing
        sides["1 lane"] = _ended(setup, prepared, algorithm, cuda_graphs=True, lanes=1)
    differ = [name for name, side in sides.items() if side.sha256 != eager.sha256]
    note = f"{some.engine}; SHA-256 {eager.sha256[:10]}"
    if differ:
        note += f"; different from eager: {', '.join(differ)}"
    log.check(f"{what}: same bits", not differ, note)
    return next((side.refused for side in sides.values() if side.refused), None)


def _twice(setup: Setup, log: Log, prepared: Prepared) -> None:
    algorithm = ALGORITHMS["fedwmsam"]()
    first, second = (_ended(setup, prepared, algorithm, lanes=LANES).sha256 for _ in range(2))
    log.check("fedwmsam twice: same bits", first == second, f"SHA-256 {first[:10]}")


def _ended(setup: Setup, prepared: Prepared, algorithm: Algorithm, **settings: Any) -> Ended:
    """Run the experiment in this process."""
    server_spec, client_spec = prepared.specs()
    client = Client(
        client_spec._replace(
            algorithm=algorithm, settings=replace(client_spec.settings, **settings)
        ),
        setup.device,
    )
    server = Server(server_spec._replace(algorithm=algorithm), LocalPool(client))
    for _ in server.run():
        pass
    ended = Ended(digest(server), str(client.engine), client.engine.refused)
    del server, client
    gc.collect()  # recordings keep memory
    return ended


def digest(server: Server) -> str:
    """SHA-256 over all that the server holds."""
    snapshot = server.snapshot()
    whole = hashlib.sha256()
    arrays = dict(snapshot.tensors)
    for client, memory in snapshot.memories.items():
        arrays |= {f"{client}/{name}": value for name, value in memory.fetch().items()}
    if (scores := server.final().scores) is not None:
        arrays["scores"] = scores
    for name in sorted(arrays):
        whole.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return whole.hexdigest()
