"""A pool without Ray: the reference that any number of actors must equal."""

from typing import Any

from rayfl.algorithms import Algorithm
from rayfl.config.schema import Experiment
from rayfl.federation.server import Server
from rayfl.prepare import Prepared, prepare
from rayfl.runtime.client import Client
from rayfl.runtime.pool import Future
from rayfl.training.engine import Broadcast, WorkUnit, sha256
from rayfl.training.flat import Layout
from rayfl.training.travel import packed


class LocalPool:
    """Executes every unit at once in this process: the reference that any other pool must equal."""

    def __init__(self, client: Client):
        self.client = client
        self.lost_units = 0

    def put(self, broadcast: Broadcast) -> Broadcast:
        return broadcast

    def store(self, memory: Any) -> Any:
        return memory

    def fetch(self, handle: Any) -> Any:
        return handle

    def train(self, unit: WorkUnit, broadcast: Any, memories: list[Any] | None) -> Future:
        given = memories if memories is not None else [None] * len(unit.clients)
        future = Future(("train", (), 0), "", done=True)
        future.result = self.client.train(unit, broadcast, *given)
        if memories is not None:
            future.result, *future.memories = future.result
        return future

    def evaluate(self, round: int, broadcast: Any, first: int, last: int) -> Future:
        result = self.client.evaluate(round, broadcast, first, last)
        return Future(("evaluate", (), 0), "", result=result, done=True)

    def wait(self, future: Future) -> Any:
        return future.result

    def poll(self) -> None:
        pass


def client_arguments(
    prepared: Prepared, algorithm: Algorithm, name: str = "test"
) -> dict[str, Any]:
    """What makes a client of this experiment on one thread of a CPU."""
    return {
        "name": name,
        "model": packed(prepared.model),
        "algorithm": algorithm,
        "dataset": prepared.data,
        "partition": prepared.partition,
        "settings": prepared.settings,
        "threads": 1,
        "gpu_fraction": 0,
    }


def a_server(prepared: Prepared) -> Server:
    """A server whose clients are trained in this process."""
    algorithm = prepared.config.algorithm
    client = Client(**client_arguments(prepared, algorithm))
    w, buffers = (v.numpy() for v in Layout(prepared.model).flatten(prepared.model))
    return Server(algorithm, "test", w, buffers, prepared.federation, LocalPool(client))


def undisturbed(config: Experiment) -> str:
    """SHA-256 of the final w, computed in this process."""
    server = a_server(prepare(config))
    for _ in server.run():
        pass
    return sha256(server.w)
