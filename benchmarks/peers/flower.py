# pyright: reportMissingImports=false
"""A workload in Flower's simulation on Ray: two client actors with a core each, no evaluation.

Written with the message API, as Flower's quickstart for PyTorch is: its rounds take a third of those of
the older `NumPyClient`. Each client actor keeps data and model from one message to the next. Flower samples
nodes of its own; the server tells each of them which client it is, so that the same clients train as in
rayfl. Every client counts the same in the mean, as in rayfl.
"""

import functools
import time
from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.bare import PROCESSES, train_client
from benchmarks.peers.turn import Task, Turn, load
from rayfl.training.flat import Layout

TIMEOUT_S = 300
loaded = functools.cache(load)
app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client for a round."""
    config = message.content["config"]
    task = loaded(config["workload"], config["rounds"], config["cifar10"])
    model = task.prepared.model
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train_client(task.prepared, model, task.x, task.y, config["server-round"], config["client"])
    metrics = MetricRecord({"weight": 1})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Observed(FedAvg):
    """FedAvg with given cohorts that records the time of each aggregation."""

    def __init__(self, task: Task):
        f = task.prepared.federation
        super().__init__(
            fraction_train=f.cohort_size / f.clients,
            fraction_evaluate=0.0,
            min_train_nodes=f.cohort_size,
            min_available_nodes=f.clients,
            weighted_by_key="weight",
        )
        self.task, self.cohorts = task, task.cohorts()
        self.ends: list[float] = []
        self.first: np.ndarray | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message, client in zip(messages, next(self.cohorts), strict=True):
            own = ConfigRecord({**config, "client": client})
            message.content = RecordDict({"arrays": arrays, "config": own})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                # After the traceback of the actor: what the client raised.
                raise RuntimeError(reply.error.reason.rpartition("Message: ")[2])
        expected = self.task.prepared.federation.cohort_size
        if len(replies) != expected:
            raise RuntimeError(f"{len(replies)} of {expected} clients replied in {TIMEOUT_S} s")
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.ends.append(time.perf_counter())
        if self.first is None:
            self.first = self.flat(arrays)
        return arrays, metrics

    def flat(self, arrays: ArrayRecord) -> np.ndarray:
        """Return w `[P]`."""
        model = self.task.prepared.model
        model.load_state_dict(arrays.to_torch_state_dict())
        return Layout(model).flatten(model)[0].numpy()


def run(workload: str, rounds: int, cifar10: str) -> Turn:
    """Run all rounds."""
    task = loaded(workload, rounds, cifar10)
    strategy, last = Observed(task), []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(task.prepared.model.state_dict()),
            num_rounds=rounds,
            timeout=TIMEOUT_S,
            train_config=ConfigRecord({"workload": workload, "rounds": rounds, "cifar10": cifar10}),
        )
        last.append(strategy.flat(result.arrays))

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=task.prepared.federation.clients,
        backend_config={
            # "local": not the Ray cluster that another program may have started.
            "init_args": {"address": "local", "num_cpus": PROCESSES},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    assert strategy.first is not None
    return Turn(np.array(strategy.ends), strategy.first, last[0])
