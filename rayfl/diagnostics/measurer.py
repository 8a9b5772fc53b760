"""One measurement of a checkpoint, on a pool of clients, as a record of plain numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayfl.federation.client_flatness import (
    ClientRounds,
    Clients,
    cost_of_client,
    measure_alignment,
    measure_landscapes,
    measure_variance,
)
from rayfl.federation.pool import Pool
from rayfl.federation.probe import PooledObjective, probe_samples
from rayfl.flatness.measures import Around, cost_of, measure_gaps, measure_hessian
from rayfl.prepare import Prepared
from rayfl.storage.checkpoint import Snapshot
from rayfl.training.flat import Layout

if TYPE_CHECKING:
    from rayfl.diagnostics.measuring import Piece, Question

Work = Callable[[float], None]


@dataclass(frozen=True)
class Measurer:
    """Measures checkpoints of one experiment."""

    prepared: Prepared
    question: "Question"
    pool: Pool

    def cost(self, piece: "Piece") -> float:
        """About how many samples' forward passes the piece takes."""
        question, effort = self.question, self.question.effort
        if piece.measure in ("gap", "hessian", "landscape"):
            return cost_of(piece.measure, effort) * len(self._samples(piece.split))
        rounds = self._rounds(piece.saved.snapshot())
        sizes = self.prepared.partition.sizes[list(rounds.clients(question.clients))]
        own = [cost_of_client(piece.measure, effort, min(int(n), question.samples)) for n in sizes]
        pooled = cost_of("tops", effort) * len(self._samples("train"))
        return sum(own) + (pooled if piece.measure == "alignment" else 0.0)

    def measure(self, piece: "Piece", on_work: Work) -> dict[str, Any]:
        """Metrics by their names in MLflow, and what belongs to them."""
        question, effort = self.question, self.question.effort
        state = piece.saved.snapshot()
        objective = self._objective(state, piece, on_work)
        n = len(objective.samples)
        if piece.measure == "gap":
            tensors = tuple(Layout(self.prepared.model).parameters)
            return _around(piece, measure_gaps(objective, tensors, effort), n)
        if piece.measure == "hessian":
            return _around(piece, measure_hessian(objective, effort), n)
        rounds = self._rounds(state, piece, on_work)
        clients = rounds.clients(question.clients)
        if piece.measure == "landscape":
            tensors = tuple(Layout(self.prepared.model).parameters)
            planes = measure_landscapes(rounds, objective, clients, tensors, effort)
            shown = {
                name: {k: v.tolist() for k, v in p._asdict().items()} for name, p in planes.items()
            }
            return {"metrics": {}, "landscapes": shown, "n": n}
        if piece.measure == "alignment":
            found = measure_alignment(rounds, objective, clients, question.samples, effort)
        else:
            found = measure_variance(rounds, clients, question.samples, effort)
        return _across(found, n)

    def _objective(self, state: Snapshot, piece: "Piece", on_work: Work) -> PooledObjective:
        w, buffers = (torch.tensor(state.tensors[name]) for name in ("w", "buffers"))
        samples = self._samples(piece.split)
        return PooledObjective(self.pool, state.round, w, buffers, piece.split, samples, on_work)

    def _rounds(
        self, state: Snapshot, piece: "Piece | None" = None, on_work: Work = lambda work: None
    ) -> ClientRounds:
        p = self.prepared

        def on_client() -> None:
            if piece is None or piece.measure == "landscape":
                return
            on_work(self.cost(piece) / max(1, self.question.clients))

        return ClientRounds(
            self.pool, state, p.federation, p.config.algorithm, p.partition, on_client
        )

    def _samples(self, split: str) -> np.ndarray:
        """The probe set: of all clients' training samples, or of the test set."""
        if split == "test":
            return probe_samples(
                np.arange(self.prepared.federation.test_samples), self.question.samples
            )
        return probe_samples(self.prepared.partition.indices, self.question.samples)


def _around(piece: "Piece", around: Around, n: int) -> dict[str, Any]:
    prefix = "flatness/" if piece.split == "train" else f"flatness/{piece.split}/"
    spectra = {
        name: {
            "eigenvalues": s.eigenvalues.tolist(),
            "errors": s.errors.tolist(),
            "weights": s.weights.tolist(),
        }
        for name, s in around.spectra.items()
    }
    metrics = {prefix + name: value for name, value in around.metrics.items()}
    return {"metrics": metrics, "spectra": spectra, "n": n}


def _across(found: Clients, n: int) -> dict[str, Any]:
    return {
        "metrics": {f"flatness/{name}": value for name, value in found.metrics.items()},
        "clients": {
            "ids": list(found.ids),
            "by_client": found.by_client,
            "cosines": found.cosines.tolist(),
        },
        "n": n,
    }
