# pyright: reportMissingImports=false
"""A workload in Flower's simulation on Ray: two client actors with a core each, no evaluation.

Clients keep data and model from one message to the next, as Flower's guide to simulations advises.
"""

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.bare import PROCESSES, tensors, train_client
from benchmarks.workloads import workloads
from rayfl.experiment import Prepared, prepare

Arrays = list[np.ndarray]


@functools.cache
def loaded(name: str, cifar10: str, rounds: int) -> tuple[Prepared, torch.Tensor, torch.Tensor]:
    """Once in a process."""
    torch.set_num_threads(1)
    workload = workloads(Path(cifar10) if cifar10 else None)[name]
    prepared = prepare(workload.experiment({"name": "fedavg"}, rounds=rounds))
    return prepared, *tensors(prepared.data)


class Client(NumPyClient):
    def __init__(self, client: int, name: str, cifar10: str, rounds: int):
        self.client, self.arguments = client, (name, cifar10, rounds)

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
        prepared, x, y = loaded(*self.arguments)
        model = prepared.model
        with torch.no_grad():
            for own, given in zip(model.parameters(), parameters, strict=True):
                own.copy_(torch.from_numpy(given))
        train_client(prepared, model, x, y, int(config["round"]), self.client)
        trained = [p.detach().numpy() for p in model.parameters()]
        return trained, len(prepared.partition.client(self.client)), {}


class TimedFedAvg(FedAvg):
    """Notes when each round has been aggregated."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.times: list[float] = []

    def aggregate_fit(self, server_round, results, failures):
        assert not failures, failures
        aggregated = super().aggregate_fit(server_round, results, failures)
        self.times.append(time.perf_counter())
        return aggregated


def main(name: str, cifar10: str, rounds: int) -> list[float]:
    """Seconds of each round but the first."""
    prepared, _, _ = loaded(name, cifar10, rounds)
    f = prepared.federation
    first = [p.detach().numpy() for p in prepared.model.parameters()]
    strategy = TimedFedAvg(
        fraction_fit=f.cohort_size / f.clients,
        fraction_evaluate=0.0,
        min_fit_clients=f.cohort_size,
        min_available_clients=f.clients,
        initial_parameters=ndarrays_to_parameters(first),
        on_fit_config_fn=lambda server_round: {"round": server_round},
    )

    def client_fn(context: Context):
        client = int(context.node_config["partition-id"])
        return Client(client, name, cifar10, rounds).to_client()

    def server_fn(context: Context) -> ServerAppComponents:
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    run_simulation(
        server_app=ServerApp(server_fn=server_fn),
        client_app=ClientApp(client_fn=client_fn),
        num_supernodes=f.clients,
        backend_config={
            "init_args": {"num_cpus": PROCESSES},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return [b - a for a, b in zip(strategy.times, strategy.times[1:], strict=False)]
