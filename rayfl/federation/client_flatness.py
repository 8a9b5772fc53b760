"""Flatness across clients: their round is run again from a checkpoint, and each one's loss is measured.

Names, each a mean over the K clients: `clients/loss_start`, `clients/loss_end`, `clients/gap_RHO_start` and
`_end`, `clients/lambda1_start` and `_end` are those of F_i at the server's w and at the client's last iterate
y_i, with `_p10` and `_p90`. With y the mean of the y_i and e = rho grad F / ||grad F||:

    distance/discrepancy        mean F_i(y) - mean F_i(y_i)     FedGF's idea, Lee & Yoon, ICML 2024
    distance/sharpness_RHO      gap of F at y - mean gap of F_i at y_i
    distance/perturbation_RHO   mean ||e_i(y_i) - e(y)||^2
    distance/point_RHO          mean ||(y_i + e_i) - (y + e)||^2

FedNSAM argues from a flatness distance but gives no formula: the last three are rayfl's definitions.

    alignment/gradient          cos(grad F_i(w), grad F(w))
    alignment/perturbation      cos of the method's own perturbations with grad F(w), over the local steps
    alignment/eigenvector       |v_i' v| of the top eigenvectors of F_i and F at w
    alignment/subspace          ||V_i' V||^2 / k of the k largest

    variance/noise, shift, perturbed    the squares of FedWMSAM's Lemma 4 (`client_measures.variance`)
    variance/ratio                      perturbed / (noise + shift): at most 1 where the lemma is tight

Shapes: P parameters, K clients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayfl import seeds
from rayfl.algorithms.base import Algorithm, TensorInfo
from rayfl.data.partition import Partition
from rayfl.federation.pool import Pool
from rayfl.federation.probe import PooledObjective
from rayfl.federation.specs import FederationSpec
from rayfl.flatness.draws import lanczos_start
from rayfl.flatness.gaps import EUCLIDEAN, sam_gaps
from rayfl.flatness.landscape import (
    Landscape,
    landscape,
    principal_directions,
    random_directions,
)
from rayfl.flatness.measures import COSTS, TOPS, Effort
from rayfl.flatness.spectrum import TOLERANCE, lanczos
from rayfl.storage.snapshot import Snapshot
from rayfl.training.batches import as_tensor
from rayfl.training.objective import probe_samples
from rayfl.training.units import (
    Arrays,
    Broadcast,
    ClientMeasure,
    ClientProbe,
    ClientProbeResult,
    WorkUnit,
)


@dataclass(frozen=True)
class Clients:
    """Measurements of K clients."""

    ids: tuple[int, ...]
    metrics: dict[str, float]
    by_client: dict[str, list[float]]
    cosines: np.ndarray
    """Cosines of each two clients' gradients at w, `[K, K]`; empty for the variance."""


@dataclass(frozen=True)
class ClientRounds:
    """The next round of a checkpoint, for some of its clients."""

    pool: Pool
    state: Snapshot
    federation: FederationSpec
    algorithm: Algorithm
    partition: Partition
    on_client: Callable[[], None] = lambda: None
    """Called when a client is done."""

    def clients(self, most: int) -> tuple[int, ...]:
        """At most so many clients of the cohort, ascending."""
        return clients_of(self.federation, self._round, most)

    @property
    def _round(self) -> int:
        return self.state.round + 1

    @property
    def _lr(self) -> float:
        """The learning rate of the next round; after the last one, of the last."""
        lrs = self.federation.lrs
        return lrs[min(self.state.round, len(lrs) - 1)]

    def ask(
        self, clients: Sequence[int], probe: ClientProbe, vectors: Arrays | None = None
    ) -> list[ClientProbeResult]:
        """Each client's answer to the probe, which names none; `vectors`: for the alignment alone."""
        state, pool = self.state, self.pool
        if vectors is None:
            none = np.zeros((1, len(state.tensors["w"])), np.float32)
            vectors = {"gradient": none, "tops": none[:0]}
        w, buffers = (torch.tensor(state.tensors[name]) for name in ("w", "buffers"))
        server = {name: torch.tensor(value) for name, value in state.server.items()}
        start, shared = self.algorithm.at(self._round).broadcast(w, server)
        point = pool.put(Broadcast(w.numpy(), {}, buffers.numpy()))
        arrays = {name: vector.numpy() for name, vector in shared.items()}
        broadcast = pool.put(Broadcast(start.numpy(), arrays, buffers.numpy()))
        given, futures = pool.store(vectors), []
        for client in clients:
            unit = WorkUnit(self._round, (client,), self._lr)
            kept = state.memories.get(client)
            memory = pool.store(kept.fetch()) if kept else None
            question = probe._replace(unit=unit)
            futures.append(pool.probe_client(question, point, broadcast, memory, given))
        results = []
        for future in futures:
            results.append(pool.wait(future))
            self.on_client()
        return results


def clients_of(federation: FederationSpec, round: int, most: int) -> tuple[int, ...]:
    """At most so many clients of the round's cohort, ascending."""
    cohort = federation.cohort(round)
    if most >= len(cohort):
        return tuple(cohort)
    rng = seeds.generator(0, "flatness", round)
    return tuple(sorted(rng.choice(cohort, most, replace=False).tolist()))


def measure_alignment(
    rounds: ClientRounds,
    pooled: PooledObjective,
    clients: Sequence[int],
    samples: int,
    effort: Effort,
) -> Clients:
    """Gaps, distances and alignment; `pooled`: F around w; `samples`: of each client, at most."""
    _, gradient = pooled.gradient()
    start = lanczos_start(gradient)
    tops = lanczos(pooled.products, start, effort.lanczos_steps, TOPS, TOLERANCE).vectors
    vectors = {"gradient": gradient[None].numpy(), "tops": tops.numpy()}
    probe = client_probe("alignment", samples, effort)
    results = rounds.ask(clients, probe, vectors)
    ends = torch.stack([as_tensor(result.vectors["end"]) for result in results])
    buffers = torch.stack([as_tensor(result.vectors["buffers"]) for result in results])
    y = ends.mean(0)
    at_mean = PooledObjective(
        pooled.pool, rounds.state.round, y, buffers.mean(0), "train", pooled.samples
    )
    _, uphill = at_mean.gradient()
    gaps = sam_gaps(at_mean, uphill, effort.rhos)
    losses = []
    for client in clients:
        own = probe_samples(rounds.partition.client(client), samples, client)
        losses.append(
            _loss(
                PooledObjective(pooled.pool, rounds.state.round, y, buffers.mean(0), "train", own)
            )
        )

    by_client = _columns(results)
    metrics = {"distance/discrepancy": float(np.mean(losses)) - _mean(by_client["loss_end"])}
    e = EUCLIDEAN.steepest(uphill)
    own_e = torch.stack(
        [EUCLIDEAN.steepest(as_tensor(result.vectors["gradient_end"])) for result in results]
    )
    for rho, gap in zip(effort.rhos, gaps, strict=True):
        metrics[f"distance/sharpness_{rho:g}"] = gap - _mean(by_client[f"gap_{rho:g}_end"])
        apart = rho * (own_e - e)
        metrics[f"distance/perturbation_{rho:g}"] = _mean_square(apart)
        metrics[f"distance/point_{rho:g}"] = _mean_square(ends - y + apart)
    for name, column in (
        ("gradient", "cos_gradient"),
        ("perturbation", "cos_perturbation"),
        ("eigenvector", "cos_top_eigenvector"),
        ("subspace", "subspace_overlap"),
    ):
        if column in by_client:
            metrics[f"alignment/{name}"] = _mean(by_client[column])
    for name in by_client:
        if not name.startswith(("cos_", "subspace")):
            metrics[f"clients/{name}"] = _mean(by_client[name])
            low, high = np.nanpercentile(by_client[name], [10, 90])
            metrics |= {f"clients/{name}_p10": float(low), f"clients/{name}_p90": float(high)}
    starts = torch.stack([as_tensor(result.vectors["gradient_start"]) for result in results])
    unit = torch.nn.functional.normalize(starts, dim=1)
    return Clients(tuple(clients), metrics, by_client, (unit @ unit.T).numpy())


def measure_variance(
    rounds: ClientRounds, clients: Sequence[int], samples: int, effort: Effort
) -> Clients:
    """The two sides of FedWMSAM's Lemma 4."""
    by_client = _columns(rounds.ask(clients, client_probe("variance", samples, effort)))
    metrics = {f"variance/{name}": _mean(values) for name, values in by_client.items()}
    bound = metrics["variance/noise"] + metrics["variance/shift"]
    metrics["variance/bound"] = bound
    if bound > 0:
        metrics["variance/ratio"] = metrics["variance/perturbed"] / bound
    return Clients(tuple(clients), metrics, by_client, np.zeros((0, 0)))


def measure_landscapes(
    rounds: ClientRounds,
    pooled: PooledObjective,
    clients: Sequence[int],
    tensors: Sequence[TensorInfo],
    effort: Effort,
) -> dict[str, Landscape]:
    """F on two planes through w: a `random` one, and that in which the `clients` move the farthest."""
    results = rounds.ask(clients, client_probe("end", 1, effort))
    moves = torch.stack([as_tensor(result.vectors["end"]) for result in results]) - pooled.w
    n = effort.grid
    planes = {"random": landscape(pooled, random_directions(pooled.w, tensors), 1.0, n, moves)}
    if len(moves) > 1:
        farthest = 1.5 * float(moves.norm(dim=1).max())
        directions = principal_directions(moves)
        planes["clients"] = landscape(pooled, directions, farthest, n, moves)
    return planes


def cost_of_client(measure: str, effort: Effort, samples: int) -> float:
    """About how many samples' forward passes one client takes, its training aside."""
    if measure == "variance":
        return COSTS["gradient"] * (2 * samples + 2 * samples * min(1, effort.minibatches))
    products = COSTS["products"] * effort.lanczos_steps
    return 2 * samples * (COSTS["gradient"] + 1 + len(effort.rhos) + products)


def client_probe(measure: ClientMeasure, samples: int, effort: Effort) -> ClientProbe:
    unit = WorkUnit(0, (), 0.0)
    return ClientProbe(
        unit, measure, samples, effort.rhos, effort.lanczos_steps, effort.minibatches
    )


def _loss(objective: PooledObjective) -> float:
    return float(objective.losses(torch.zeros(1, 1), torch.zeros_like(objective.w)[None])[0])


def _columns(results: Sequence[ClientProbeResult]) -> dict[str, list[float]]:
    """Each metric's values by client; NaN where a client has none, as one without a perturbation."""
    names = dict.fromkeys(name for result in results for name in result.metrics)
    return {name: [r.metrics.get(name, float("nan")) for r in results] for name in names}


def _mean(values: Sequence[float]) -> float:
    return float(np.nanmean(values))


def _mean_square(vectors: Tensor) -> float:
    return float(vectors.double().square().sum(-1).mean())
