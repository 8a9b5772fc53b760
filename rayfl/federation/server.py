"""The server: global parameters, server state, and the rounds.

`Server` is a plain class over a pool. Round r: sample the cohort, broadcast, cut the cohort into work
units, have what they bring back added up along a tree over the units, and let the algorithm aggregate.
"""

import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from rayfl.algorithms.base import ServerContext
from rayfl.algorithms.noise import server_noise
from rayfl.errors import DivergedError
from rayfl.federation import personal
from rayfl.federation.averaging import Average
from rayfl.federation.evaluation import OF_AVERAGE, OF_MODEL, Evaluations
from rayfl.federation.memories import Memories, MemoryRef, Tier
from rayfl.federation.metrics import EvaluationMetrics, Metrics, PendingRound, RoundMetrics
from rayfl.federation.movement import Movement
from rayfl.federation.pool import Pool
from rayfl.federation.sampling import survivors
from rayfl.federation.specs import ServerSpec
from rayfl.storage.snapshot import Snapshot
from rayfl.training.units import (
    Broadcast,
    PersonalResult,
    UnitResult,
    WorkUnit,
)


class Final(NamedTuple):
    """The result of a run."""

    w: np.ndarray  # `[P]`
    buffers: np.ndarray  # `[Q]`
    # Score of each test sample at the last evaluated w, `[n]`; None before the first one.
    scores: np.ndarray | None
    average: tuple[np.ndarray, np.ndarray] | None  # w and buffers averaged over the rounds
    # By client, of the last evaluation of the clients' own models.
    personal: dict[int, PersonalResult]


class Server:
    """Holds w and the server state, and runs rounds on a pool of clients."""

    def __init__(self, spec: ServerSpec, pool: Pool, tier: Tier | None = None):
        self.algorithm, self.name, self.pool = spec.algorithm, spec.name, pool
        self.federation, self._diagnosis = spec.federation, spec.diagnosis
        self._personalisation, self.personal = spec.personalisation, dict[int, PersonalResult]()
        self._callbacks = spec.callbacks
        self.w, self.buffers = torch.tensor(spec.w), torch.tensor(spec.buffers)
        self.state = self.algorithm.init_server(self.w)
        # Server state that begins at infinity, as a running minimum does, and may stay there.
        self._infinite = {name for name, value in self.state.items() if value.isinf().any()}
        self.round = 0  # rounds that are done
        self._movement = Movement()
        self.average = Average(spec.average, self.w, self.buffers) if spec.average else None
        first = self.algorithm.init_client(self.w)
        self.memories = Memories(pool, sum(v.nbytes for v in first.values()), tier)
        self._remembers = bool(first)
        self._evaluations = Evaluations(pool, self.federation, self._diverged)
        # Round that `self.w` is to be evaluated after, once the next round's units are on their way.
        self._due: int | None = None

    @torch.no_grad()
    def run(self, until: int | None = None) -> Iterator[Metrics]:
        """The rounds after `self.round` up to `until` (None: all), with all evaluations that are due.

        Evaluations overlap the rounds after theirs: an actor takes to them when no unit is left.
        """
        f = self.federation
        last = f.rounds if until is None else min(until, f.rounds)
        for round in range(self.round + 1, last + 1):
            pending = self._open(round)
            self._prefetch(round + 1)
            # While the actors train: what has become known of the rounds before.
            self.pool.poll()
            yield from self._evaluations.ended(wait=False)
            metrics = self._close(pending)
            self.round = round
            if f.is_evaluated(round):
                self._due = round
            yield metrics
        yield from self.settle()

    def settle(self) -> Iterator[EvaluationMetrics]:
        """Wait for the evaluations of the rounds so far."""
        self._evaluate()
        return self._evaluations.ended(wait=True)

    def diagnose(self) -> EvaluationMetrics | None:
        """Measure the state after the last round, if that is due after it."""
        due, f = self._diagnosis, self.federation
        if due is None or not due.is_due(self.round, f.rounds):
            return None
        return EvaluationMetrics(self.round, due.measurer.metrics(self.pool, self.snapshot()))

    def not_due(self, round: int) -> tuple[str, ...]:
        """Beginnings of the names of metrics that this round is not measured for."""
        f, names = self.federation, []
        if not f.is_evaluated(round):
            names += [*OF_MODEL.values(), "average/", "client/"]
        if self._personalisation and not self._personalisation.is_due(round, f.rounds):
            names.append("personal/")
        if self._diagnosis and not self._diagnosis.is_due(round, f.rounds):
            names.append("flatness/")
        return tuple(names)

    def personalise(self) -> EvaluationMetrics | None:
        """Evaluate clients' own models after the last round, if that is due after it."""
        asked, f = self._personalisation, self.federation
        if asked is None or not asked.is_due(self.round, f.rounds):
            return None
        point = self._put(self.w, self.buffers)
        lr = f.lrs[min(self.round, f.rounds - 1)]
        self.personal = asked.measure(
            self.pool, f.evaluation.breakdown, self.round, lr, point, self.memories
        )
        return EvaluationMetrics(self.round, personal.metrics(self.personal))

    def call_back(self, metrics: Mapping[str, float]) -> EvaluationMetrics | None:
        """Call the user's own functions, if any, after the last round, whose metrics so far are these."""
        if self._callbacks is None:
            return None
        found = self._callbacks.call(self.round, metrics, (self.w, self.buffers))
        return EvaluationMetrics(self.round, found)

    def snapshot(self) -> Snapshot:
        """The state after `self.round` rounds; memories are fetched when they are asked for."""
        tensors = {"w": self.w, "buffers": self.buffers}
        tensors |= {f"server/{name}": value for name, value in self.state.items()}
        if self._movement.last is not None:
            tensors["last_delta"] = self._movement.last
        average = self.average.arrays() if self.average else {}
        arrays = {name: value.numpy() for name, value in tensors.items()}
        arrays |= {f"average/{name}": array for name, array in average.items()}
        return Snapshot(self.round, arrays, self.memories.snapshot())

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from this state; ValueError if the algorithm keeps another one."""
        tensors = {
            name: torch.tensor(snapshot.tensors[name])
            for name in ("w", "buffers", "last_delta")
            if name in snapshot.tensors
        }
        state = {name: torch.tensor(array) for name, array in snapshot.server.items()}
        shapes = {name: value.shape for name, value in state.items()}
        if shapes != {name: value.shape for name, value in self.state.items()}:
            raise ValueError(
                f"the server state of algorithm '{self.name}' is {sorted(self.state)}, not {sorted(state)}"
            )
        self.round, self.state, self._due = snapshot.round, state, None
        self.w, self.buffers = tensors["w"], tensors["buffers"]
        self._movement = Movement(tensors.get("last_delta"))
        if self.average:
            self.average.restore(snapshot.average, snapshot.round)
        self.memories.restore(snapshot.memories)

    def _open(self, round: int) -> PendingRound:
        """Send the broadcast and the work units, and behind them the evaluation of the round before."""
        f, began = self.federation, time.perf_counter()
        lr = f.lrs[round - 1]
        start, shared = self.algorithm.at(round).broadcast(self.w, self.state)
        broadcast = Broadcast(
            start.numpy(),
            {name: v.numpy() for name, v in shared.items()},
            self.buffers.numpy(),
            secrets.token_bytes(8),
        )
        handle = self.pool.put(broadcast)
        sampled = f.cohort(round)
        # A client that will be lost need not be trained: nothing of it comes back.
        cohort = survivors(sampled, f.client_dropout, f.seed, round)
        units = [
            self._unit(round, tuple(cohort[i : i + f.clients_per_unit]), lr)
            for i in range(0, len(cohort), f.clients_per_unit)
        ]
        samples = [int(f.sizes[list(unit.clients)].sum()) for unit in units]
        memories = None
        if self._remembers:
            memories = [self.memories.lend(unit.clients) for unit in units]
        training = self.pool.train(units, samples, handle, memories)
        self._evaluate(handle if start is self.w else None)
        down = 0 if self.algorithm.at(round).sends == "nothing" else broadcast.nbytes
        sizes = len(sampled), len(cohort), down
        return PendingRound(round, began, lr, *sizes, units, training)

    def _close(self, pending: PendingRound) -> RoundMetrics:
        """Add up what the units bring back, and let the algorithm aggregate."""
        futures, results = pending.training.futures, list[UnitResult]()
        for unit, future in zip(pending.units, futures, strict=True):
            results.append(self.pool.wait(future))
            self._check_finite(unit, results[-1])
        sums = self.pool.total(pending.training)
        busy: dict[int, float] = defaultdict(float)
        for unit, future, result in zip(pending.units, futures, results, strict=True):
            busy[future.actor] += result.seconds
            for client, handle in zip(unit.clients, future.memories, strict=False):
                self.memories[client] = MemoryRef(pending.round, handle, unit.name)
        weights = np.concatenate([result.weights for result in results])
        total = float(weights.sum())
        steps = float(np.concatenate([result.steps for result in results]) @ weights) / total
        metrics = pending.metrics(results, weights)
        if private := self.federation.privacy:
            private.release_(sums, pending.round, self.federation.is_empty(pending.round))
            total, steps = private.mechanism.cohort, private.steps
            metrics |= private.metrics(pending.round, results)
        mean = {name: value.div_(total) for name, value in sums.items()}
        self.buffers = mean.pop("buffers")
        participation = total / self.federation.total_weight
        algorithm = self.algorithm.at(pending.round)
        momentum = algorithm.global_momentum(self.state)
        metrics |= self._movement.metrics(mean["delta"], momentum, metrics["train/drift"])
        if self.federation.privacy is not None:  # clipped and noisy, over what is neither
            metrics.pop("update/agreement", None)
        random = server_noise(self.federation.seed, pending.round)
        ctx = ServerContext(pending.lr, steps, participation, pending.round, random)
        self.w, self.state = algorithm.server_step(self.w, self.state, mean, ctx)
        self._check_aggregated(pending.round)
        if self.average:
            self.average.add(pending.round, self.w, self.buffers)
        # An adaptive scalar of the algorithm, such as FedWMSAM's alpha, is worth a curve.
        metrics |= {f"server/{n}": float(v) for n, v in self.state.items() if v.numel() == 1}
        metrics["runtime/lost_units"] = float(self.pool.lost_units)
        took = time.perf_counter() - pending.began
        times = {"time/overhead_s": took - max(busy.values()), "time/round_s": took}
        return RoundMetrics(pending.round, metrics | times)

    def _evaluate(self, handle: Any = None) -> None:
        """Queue the evaluation that is due, if one is; `handle`: of a broadcast whose start is `self.w`."""
        if self._due is None:
            return
        round, self._due = self._due, None
        handle = self._put(self.w, self.buffers) if handle is None else handle
        models = [(handle, OF_MODEL)]
        if self.average and (averaged := self.average.model()):
            models.append((self._put(*averaged), OF_AVERAGE))
        self._evaluations.begin(round, models)

    def _put(self, w: torch.Tensor, buffers: torch.Tensor) -> Any:
        return self.pool.put(Broadcast(w.numpy(), {}, buffers.numpy()))

    def _unit(self, round: int, clients: tuple[int, ...], lr: float) -> WorkUnit:
        kept = (self.memories.get(client) for client in clients)
        names = tuple(k.name if k else None for k in kept)
        return WorkUnit(round, clients, lr, names, secrets.token_bytes(8))

    def _prefetch(self, round: int) -> None:
        """Have the memories of a round's cohort read while the one before it trains."""
        f = self.federation
        if not self.memories.is_complete and round <= f.rounds:
            self.memories.prefetch(survivors(f.cohort(round), f.client_dropout, f.seed, round))

    def _check_finite(self, unit: WorkUnit, result: UnitResult) -> None:
        finite = np.isfinite(result.losses) & np.isfinite(result.drifts)
        if finite.all():
            return
        clients = [c for c, ok in zip(unit.clients, finite, strict=True) if not ok]
        raise self._diverged(unit.round, f"the loss, the update or the memory of clients {clients}")

    def _check_aggregated(self, round: int) -> None:
        """After the last round no client would see it, nor if its clients do not use all of it."""
        held = {"w": self.w, "buffers": self.buffers}
        for name, value in self.state.items():
            allowed = name in self._infinite
            held[f"server state '{name}'"] = value.clamp(-1, 1) if allowed else value  # NaN stays
        if broken := [name for name, value in held.items() if not _is_finite(value)]:
            raise self._diverged(round, f"what the server aggregated ({', '.join(broken)})")

    def _diverged(self, round: int, what: str) -> DivergedError:
        return DivergedError(
            f"round {round}, algorithm '{self.name}': {what} is not finite; lower federation.lr (now "
            f"{self.federation.lrs[round - 1]:g}) or the algorithm's rho, or set federation.clip_norm",
            keys=("federation.lr", "federation.clip_norm"),
        )

    def final(self) -> Final:
        """The result of the rounds so far."""
        averaged = self.average.model() if self.average else None
        return Final(
            self.w.numpy(),
            self.buffers.numpy(),
            self._evaluations.scores,
            None if averaged is None else (averaged[0].numpy(), averaged[1].numpy()),
            self.personal,
        )


def _is_finite(vector: torch.Tensor) -> bool:
    """Neither infinities nor NaN survive a sum unseen, which costs a tenth of looking at each number.

    The sum of finite numbers may overflow too.
    """
    return bool(vector.sum().isfinite()) or bool(vector.isfinite().all())
