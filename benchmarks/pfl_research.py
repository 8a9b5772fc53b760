# pyright: reportMissingImports=false
"""A workload in pfl-research: two workers of one thread that share a cohort, no evaluation but the first.

pfl takes each client's batches in the order of its samples, one after the other.
"""

import time
from pathlib import Path

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn

from benchmarks.bare import tensors
from benchmarks.workloads import workloads
from rayfl.experiment import prepare


class Trained(nn.Module):
    """A model with the two methods that pfl asks of it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


class Clock(TrainingProcessCallback):
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.times.append(time.perf_counter())
        return False, Metrics()


def main(name: str, cifar10: str, rounds: int) -> list[float]:
    """Seconds of each round but the first, in this worker."""
    torch.set_num_threads(1)
    workload = workloads(Path(cifar10) if cifar10 else None)[name]
    prepared = prepare(workload.experiment({"name": "fedavg"}, rounds=rounds))
    f, s = prepared.federation, prepared.settings
    x, y = tensors(prepared.data)
    np.random.seed(0)  # noqa: NPY002  every worker of pfl must draw the same cohorts

    def dataset(client: int) -> Dataset:
        own = torch.from_numpy(prepared.partition.client(client))
        return Dataset((x[own], y[own]))

    model = Trained(prepared.model)
    clients = FederatedDataset(dataset, get_user_sampler("minimize_reuse", list(range(f.clients))))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,
            train_cohort_size=f.cohort_size,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=clients, val_data=clients),
        model=PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_batch_size=s.batch_size,
            local_num_epochs=None,
            local_num_steps=s.local_steps,
            local_learning_rate=f.lrs[0],
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    return [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
