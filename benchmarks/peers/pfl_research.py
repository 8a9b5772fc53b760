# pyright: reportMissingImports=false
"""A workload in pfl-research: two workers of one thread that share each cohort, started by `torchrun`.

No evaluation but that of the first round. pfl keeps data and model in its workers. Users are drawn in the
order of rayfl's cohorts, and a user's dataset yields the minibatches that rayfl takes. Every user counts
the same in the mean, as in rayfl.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import distributed, nn

from benchmarks.bare import PROCESSES, minibatches
from benchmarks.peers.turn import Task, Turn, load
from rayfl.training.flat import Layout


class Trained(nn.Module):
    """Model with the two methods that pfl requires."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


class Client(Dataset):
    """Samples of a client, in the minibatches of one round."""

    def __init__(self, task: Task, round: int, client: int):
        super().__init__((task.x, task.y), user_id=str(client))
        self.task, self.round, self.client = task, round, client

    def __len__(self) -> int:
        return len(self.task.prepared.partition.client(self.client))

    def iter(self, batch_size: int | None) -> Iterator[list[torch.Tensor]]:
        for chosen in minibatches(self.task.prepared, self.round, self.client):
            yield [self.task.x[chosen], self.task.y[chosen]]


class Observer(TrainingProcessCallback):
    """Callback that records the end of each round, and w after the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.first: np.ndarray | None = None

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.ends.append(time.perf_counter())
        if self.first is None:
            self.first = _flat(model)
        return False, Metrics()


def run(workload: str, rounds: int, cifar10: str) -> Turn | None:
    """Run all rounds. Return None in all workers but one."""
    task = load(workload, rounds, cifar10)
    f, s = task.prepared.federation, task.prepared.settings
    # Both workers draw all users, and each takes every other one.
    assert f.cohort_size % PROCESSES == 0
    assert distributed.get_world_size() == PROCESSES
    users = ((round, c) for round, cohort in enumerate(task.cohorts(), 1) for c in cohort)
    clients = FederatedDataset(lambda user: Client(task, *user), lambda: next(users))
    trained = Trained(task.prepared.model)
    observer = Observer()
    model = FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,
            train_cohort_size=f.cohort_size,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=clients, val_data=clients),
        model=PyTorchModel(trained, torch.optim.SGD, torch.optim.SGD(trained.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_batch_size=s.batch_size,
            local_num_epochs=None,
            local_num_steps=s.local_steps,
            local_learning_rate=f.lrs[0],
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[observer],
        send_metrics_to_platform=False,
    )
    if distributed.get_rank():
        return None
    assert observer.first is not None
    return Turn(np.array(observer.ends), observer.first, _flat(model))


def _flat(model: PyTorchModel) -> np.ndarray:
    """Return w `[P]`."""
    plain = model.pytorch_model.model
    return Layout(plain).flatten(plain)[0].numpy()
