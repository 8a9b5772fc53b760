"""A server without Ray: the reference that any number of actors must equal."""

from collections.abc import Callable

from rayfl.algorithms import Algorithm
from rayfl.config.schema import Experiment
from rayfl.federation.client import Client
from rayfl.federation.pool import LocalPool, Pool
from rayfl.federation.server import Server
from rayfl.federation.specs import ClientSpec, ServerSpec
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.training.flat import sha256
from rayfl.training.process import configure_process


def specs(
    prepared: Prepared, algorithm: Algorithm | None = None, name: str = "test"
) -> tuple[ServerSpec, ClientSpec]:
    """The specs of this experiment with an algorithm that need not be its own."""
    server, client = prepared.specs()
    algorithm = algorithm or server.algorithm
    return (
        server._replace(algorithm=algorithm, name=name),
        client._replace(algorithm=algorithm, name=name),
    )


def a_server(
    prepared: Prepared,
    algorithm: Algorithm | None = None,
    name: str = "test",
    pool: Callable[[Client], Pool] = LocalPool,
) -> Server:
    """A server whose clients are trained in this process."""
    configure_process(threads=1)  # as every client actor is
    server, client = specs(prepared, algorithm, name)
    return Server(server, pool(Client(client)))


def undisturbed(config: Experiment) -> str:
    """SHA-256 of the final w, computed in this process."""
    server = a_server(prepare(config))
    for _ in server.run():
        pass
    return sha256(server.w)
