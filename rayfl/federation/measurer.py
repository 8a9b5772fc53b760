"""One measurement of a server's state, on a pool of clients, as a record of plain numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayfl.algorithms.base import Algorithm, TensorInfo
from rayfl.data.partition import Partition
from rayfl.federation.client_flatness import (
    ClientRounds,
    Clients,
    clients_of,
    cost_of_client,
    measure_alignment,
    measure_landscapes,
    measure_variance,
)
from rayfl.federation.pool import Pool
from rayfl.federation.probe import PooledObjective
from rayfl.federation.specs import FederationSpec
from rayfl.flatness.measures import Around, cost_of, measure_gaps, measure_hessian
from rayfl.flatness.question import ACROSS, Measure, Question, Split
from rayfl.storage.snapshot import Snapshot
from rayfl.training.objective import probe_samples

Work = Callable[[float], None]


@dataclass(frozen=True)
class Measurer:
    """Measures states of one experiment."""

    question: Question
    federation: FederationSpec
    algorithm: Algorithm
    partition: Partition
    tensors: tuple[TensorInfo, ...]

    def cost(self, state: Snapshot, measure: Measure, split: Split) -> float:
        """About how many samples' forward passes the measure takes."""
        q = self.question
        pooled = len(self._samples(split))
        if measure not in ACROSS:
            return cost_of(measure, q.effort) * pooled
        if measure == "landscape":
            return cost_of("landscape", q.effort) * pooled
        cost = sum(self._costs(state, measure))
        return cost + (cost_of("tops", q.effort) * pooled if measure == "alignment" else 0.0)

    def measure(
        self,
        pool: Pool,
        state: Snapshot,
        measure: Measure,
        split: Split,
        on_work: Work = lambda work: None,
    ) -> dict[str, Any]:
        """Metrics by their names in MLflow, the number of samples `n`, and what belongs to them."""
        effort = self.question.effort
        objective = self.objective(pool, state, split, on_work)
        record = {"n": len(objective.samples)}
        if measure == "gap":
            return record | _around(split, measure_gaps(objective, self.tensors, effort))
        if measure == "hessian":
            return record | _around(split, measure_hessian(objective, effort))
        rounds = self._rounds(pool, state, measure, on_work)
        clients = rounds.clients(self.question.clients)
        if measure == "landscape":
            planes = measure_landscapes(rounds, objective, clients, self.tensors, effort)
            plain = {k: {n: v.tolist() for n, v in p._asdict().items()} for k, p in planes.items()}
            return record | {"metrics": {}, "landscapes": plain}
        if measure == "alignment":
            samples = self.question.samples
            found = measure_alignment(rounds, objective, clients, samples, effort)
        else:
            found = measure_variance(rounds, clients, self.question.samples, effort)
        return record | _across(found)

    def objective(
        self, pool: Pool, state: Snapshot, split: Split, on_work: Work = lambda work: None
    ) -> PooledObjective:
        """The loss on a split's probe set, around the state's w."""
        w, buffers = (torch.tensor(state.tensors[name]) for name in ("w", "buffers"))
        samples = self._samples(split)
        return PooledObjective(pool, state.round, w, buffers, split, samples, on_work)

    def metrics(self, pool: Pool, state: Snapshot) -> dict[str, float]:
        """All metrics that the question asks for."""
        found: dict[str, float] = {}
        for measure, split in self.question.pieces:
            found |= self.measure(pool, state, measure, split)["metrics"]
        return found

    def _rounds(self, pool: Pool, state: Snapshot, measure: Measure, on_work: Work) -> ClientRounds:
        costs = iter([] if measure == "landscape" else self._costs(state, measure))
        return ClientRounds(
            *(pool, state, self.federation, self.algorithm, self.partition),
            on_client=lambda: on_work(next(costs, 0.0)),
        )

    def _costs(self, state: Snapshot, measure: Measure) -> list[float]:
        """The cost of each client."""
        q = self.question
        clients = clients_of(self.federation, state.round + 1, q.clients)
        sizes = self.partition.sizes_of(clients)
        return [cost_of_client(measure, q.effort, min(int(n), q.samples)) for n in sizes]

    def _samples(self, split: Split) -> np.ndarray:
        """The probe set: of all clients' training samples, or of the test set."""
        if split == "test":
            return probe_samples(np.arange(self.federation.test_samples), self.question.samples)
        return probe_samples(self.partition.indices, self.question.samples)


def _around(split: Split, around: Around) -> dict[str, Any]:
    prefix = "flatness/" if split == "train" else f"flatness/{split}/"
    spectra = {
        name: {
            "eigenvalues": s.eigenvalues.tolist(),
            "errors": s.errors.tolist(),
            "weights": s.weights.tolist(),
        }
        for name, s in around.spectra.items()
    }
    metrics = {prefix + name: value for name, value in around.metrics.items()}
    return {"metrics": metrics, "spectra": spectra}


def _across(found: Clients) -> dict[str, Any]:
    return {
        "metrics": {f"flatness/{name}": value for name, value in found.metrics.items()},
        "clients": {
            "ids": list(found.ids),
            "by_client": found.by_client,
            "cosines": found.cosines.tolist(),
        },
    }
