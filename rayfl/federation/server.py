"""The server: global parameters, server state, and the rounds.

`Server` is a plain class over a pool. Round r: sample the cohort, broadcast, cut the cohort into work
units, add up what they bring back in the order of the units, and let the algorithm aggregate.
"""

import functools
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from rayfl.algorithms.base import Algorithm, ServerContext
from rayfl.algorithms.noise import server_noise
from rayfl.errors import DivergedError
from rayfl.federation.evaluation import Breakdown
from rayfl.federation.pool import Pool, Ticket
from rayfl.federation.sampling import Sampling, cohort_size, sample_cohort, survivors
from rayfl.storage.checkpoint import Memory, Snapshot
from rayfl.training.engine import (
    Broadcast,
    EvaluationResult,
    UnitResult,
    WorkUnit,
    as_tensor,
)

# Samples that one evaluation unit covers: fixed, so that no sum depends on the number of actors.
EVALUATION_UNIT = 1000


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The rounds of one experiment."""

    seed: int
    clients: int
    participation: float
    """S / N as asked for."""
    sampling: Sampling
    sizes: np.ndarray
    """Training samples of each client, int64 `[N]`."""
    client_dropout: float
    """Probability that a client of a cohort is lost, and its update with it."""
    rounds: int
    lrs: tuple[float, ...]
    """Local learning rate of each round."""
    clients_per_unit: int
    eval_every: int
    test_samples: int
    breakdown: Breakdown
    """What is computed from the correct predictions, beside their share."""

    @property
    def cohort_size(self) -> int:
        """S, on average where it varies."""
        return cohort_size(self.participation, self.clients)

    def cohort(self, round: int) -> list[int]:
        """Client ids of this round, ascending, whether they will come back or not."""
        return sample_cohort(self.sampling, self.participation, self.sizes, self.seed, round)


class Record(NamedTuple):
    """Metrics after `round` rounds. A round's evaluation comes in a record of its own, later."""

    round: int
    metrics: dict[str, float]


class Opened(NamedTuple):
    """A round whose work units are on their way."""

    round: int
    began: float
    lr: float
    sampled: int
    """Clients of the cohort, those that will be lost among them."""
    clients: int
    """Clients that come back."""
    bytes_down: int
    """For one client."""
    units: list[WorkUnit]
    tickets: list[Ticket]


class Kept(NamedTuple):
    """Where one client's memory is."""

    round: int
    """The client's last round."""
    handle: Any
    """Of the pool."""


class Server:
    """Holds w and the server state, and runs rounds on a pool of clients."""

    def __init__(
        self,
        algorithm: Algorithm,
        name: str,
        w: np.ndarray,
        buffers: np.ndarray,
        federation: Federation,
        pool: Pool,
    ):
        self.algorithm, self.name, self.federation, self.pool = algorithm, name, federation, pool
        self.w, self.buffers = torch.tensor(w), torch.tensor(buffers)
        self.state = algorithm.init_server(self.w)
        self._infinite = {name for name, value in self.state.items() if value.isinf().any()}
        """Server state that begins at infinity, as a running minimum does, and may stay there."""
        self.round = 0
        """Rounds that are done."""
        self.memories: dict[int, Kept] = {}
        """Each client's memory, by client id; clients never sampled have none."""
        self._remembers = bool(algorithm.init_client(self.w))
        self.correct: np.ndarray | None = None
        """Which test samples the last evaluated w predicts correctly, bool `[n]`; None before."""
        self._evaluations: deque[tuple[int, list[Ticket]]] = deque()
        self._due: int | None = None
        """Round that `self.w` is to be evaluated after, once the next round's units are on their way."""

    @torch.no_grad()
    def run(self, until: int | None = None) -> Iterator[Record]:
        """The rounds after `self.round` up to `until` (None: all), with all evaluations that are due.

        Evaluations overlap the rounds after theirs: an actor takes to them when no unit is left.
        """
        f = self.federation
        last = f.rounds if until is None else min(until, f.rounds)
        for round in range(self.round + 1, last + 1):
            opened = self._open(round)
            # While the actors train: what has become known of the rounds before.
            self.pool.poll()
            yield from self._evaluated(wait=False)
            record = self._close(opened)
            self.round = round
            if round % f.eval_every == 0 or round == f.rounds:
                self._due = round
            yield record
        yield from self.settle()

    def settle(self) -> Iterator[Record]:
        """Wait for the evaluations of the rounds so far."""
        if self._due is not None:
            self._evaluate(self.pool.put(Broadcast(self.w.numpy(), {}, self.buffers.numpy())))
        return self._evaluated(wait=True)

    def snapshot(self) -> Snapshot:
        """The state after `self.round` rounds; memories are fetched when they are asked for."""
        tensors = {"w": self.w, "buffers": self.buffers}
        tensors |= {f"server/{name}": value for name, value in self.state.items()}
        memories = {
            client: Memory(kept.round, functools.partial(self.pool.fetch, kept.handle))
            for client, kept in self.memories.items()
        }
        arrays = {name: value.numpy() for name, value in tensors.items()}
        return Snapshot(self.round, arrays, memories)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from this state; ValueError if the algorithm keeps another one."""
        tensors = {name: torch.tensor(array) for name, array in snapshot.tensors.items()}
        state = {
            n.removeprefix("server/"): v for n, v in tensors.items() if n.startswith("server/")
        }
        shapes = {name: value.shape for name, value in state.items()}
        if shapes != {name: value.shape for name, value in self.state.items()}:
            raise ValueError(
                f"the server state of algorithm '{self.name}' is {sorted(self.state)}, not {sorted(state)}"
            )
        self.round, self.state, self._due = snapshot.round, state, None
        self.w, self.buffers = tensors["w"], tensors["buffers"]
        self.memories = {
            client: Kept(memory.round, self.pool.store(memory.fetch()))
            for client, memory in snapshot.memories.items()
        }

    def _open(self, round: int) -> Opened:
        """Send the broadcast and the work units, and behind them the evaluation of the round before."""
        f, began = self.federation, time.perf_counter()
        lr = f.lrs[round - 1]
        start, shared = self.algorithm.broadcast(self.w, self.state)
        broadcast = Broadcast(
            start.numpy(), {name: v.numpy() for name, v in shared.items()}, self.buffers.numpy()
        )
        handle = self.pool.put(broadcast)
        if self._due is not None and start is not self.w:
            evaluated = self.pool.put(Broadcast(self.w.numpy(), {}, self.buffers.numpy()))
        else:
            evaluated = handle
        sampled = f.cohort(round)
        # A client that will be lost need not be trained: nothing of it comes back.
        cohort = survivors(sampled, f.client_dropout, f.seed, round)
        units = [
            WorkUnit(round, tuple(cohort[i : i + f.clients_per_unit]), lr)
            for i in range(0, len(cohort), f.clients_per_unit)
        ]
        tickets = self._submit(units, handle)
        if self._due is not None:
            self._evaluate(evaluated)
        down = [broadcast.start, broadcast.buffers, *broadcast.shared.values()]
        bytes_down = sum(v.nbytes for v in down)
        return Opened(round, began, lr, len(sampled), len(cohort), bytes_down, units, tickets)

    def _close(self, opened: Opened) -> Record:
        """Add up what the units bring back, and let the algorithm aggregate."""
        sums: dict[str, torch.Tensor] = {}
        results: list[UnitResult] = []
        busy: dict[int, float] = defaultdict(float)
        for unit, ticket in zip(opened.units, opened.tickets, strict=True):
            # In unit order, whoever is first.
            result = self._add(unit, self.pool.wait(ticket), sums)
            ticket.result = None
            results.append(result)
            busy[ticket.actor] += result.seconds
            for client, handle in zip(unit.clients, ticket.memories, strict=False):
                self.memories[client] = Kept(opened.round, handle)
        mean = {name: value.div_(opened.clients) for name, value in sums.items()}
        self.buffers = mean.pop("buffers")
        steps = sum(result.steps for result in results) / opened.clients
        participation = opened.clients / self.federation.clients
        random = server_noise(self.federation.seed, opened.round)
        ctx = ServerContext(opened.lr, steps, participation, opened.round, random)
        self.w, self.state = self.algorithm.server_step(self.w, self.state, mean, ctx)
        self._check_aggregated(opened.round)
        metrics = self._metrics(opened, mean, results)
        took = time.perf_counter() - opened.began
        times = {"time/overhead_s": took - max(busy.values()), "time/round_s": took}
        return Record(opened.round, metrics | times)

    def _add(self, unit: WorkUnit, result: UnitResult, sums: dict[str, torch.Tensor]) -> UnitResult:
        """Add the unit's sums to `sums`; the rest of the result.

        Its arrays are the object store's: a reference to one would keep all of them there.
        """
        self._check_finite(unit, result)
        for name, value in result.sums.items():
            if name in sums:
                sums[name] += as_tensor(value)
            else:
                sums[name] = as_tensor(value).clone()
        return result._replace(sums={}, losses=result.losses.copy(), drifts=result.drifts.copy())

    def _submit(self, units: list[WorkUnit], broadcast: Any) -> list[Ticket]:
        """A ticket for each unit. The longest go first, so that no actor is left with one at the end."""
        samples = [int(self.federation.sizes[list(unit.clients)].sum()) for unit in units]
        tickets: dict[int, Ticket] = {}
        for i in sorted(range(len(units)), key=lambda i: -samples[i]):
            tickets[i] = self.pool.train(units[i], broadcast, self._memories(units[i]))
        return [tickets[i] for i in range(len(units))]

    def _memories(self, unit: WorkUnit) -> list[Any] | None:
        if not self._remembers:
            return None
        kept = (self.memories.get(client) for client in unit.clients)
        return [k.handle if k else None for k in kept]

    def _check_finite(self, unit: WorkUnit, result: UnitResult) -> None:
        finite = np.isfinite(result.losses) & np.isfinite(result.drifts)
        if finite.all():
            return
        clients = [c for c, ok in zip(unit.clients, finite, strict=True) if not ok]
        raise self._diverged(unit.round, f"the loss or the update of clients {clients}")

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
            f"{self.federation.lrs[round - 1]:g}) or the algorithm's rho, or set federation.clip_norm"
        )

    def _metrics(
        self, opened: Opened, mean: dict[str, torch.Tensor], results: list[UnitResult]
    ) -> dict[str, float]:
        """The round's metrics. Clients that were lost cost bytes down, nothing else."""
        cohort = opened.clients
        up = [*mean.values(), self.buffers]
        # Whatever the algorithm keeps as a scalar (an adaptive alpha) is worth a curve.
        scalars = {f"server/{n}": float(v) for n, v in self.state.items() if v.numel() == 1}
        return {
            "train/loss": float(np.concatenate([r.losses for r in results]).mean(dtype=np.float64)),
            "train/drift": float(
                np.concatenate([r.drifts for r in results]).mean(dtype=np.float64)
            ),
            "train/lr": opened.lr,
            **scalars,
            "cohort/size": float(cohort),
            "cohort/dropped": float(opened.sampled - cohort),
            "cost/bytes_down": float(opened.sampled * opened.bytes_down),
            "cost/bytes_up": float(cohort * sum(v.nbytes for v in up)),
            "cost/backward_passes": float(sum(r.backward_passes for r in results)),
            "runtime/lost_units": float(self.pool.lost_units),
            "time/client_s": sum(r.seconds for r in results),
        }

    def _evaluate(self, handle: Any) -> None:
        """Queue the evaluation that is due, of the broadcast whose start is `self.w`."""
        assert self._due is not None
        round, self._due = self._due, None
        n = self.federation.test_samples
        tickets = [
            self.pool.evaluate(round, handle, first, min(first + EVALUATION_UNIT, n))
            for first in range(0, n, EVALUATION_UNIT)
        ]
        self._evaluations.append((round, tickets))

    def _evaluated(self, wait: bool) -> Iterator[Record]:
        """Finished evaluations in the order of their rounds."""
        while self._evaluations:
            round, tickets = self._evaluations[0]
            if not wait and not all(ticket.done for ticket in tickets):
                return
            parts: list[EvaluationResult] = [self.pool.wait(ticket) for ticket in tickets]
            self._evaluations.popleft()
            self.correct = np.concatenate([part.correct for part in parts])
            samples = len(self.correct)
            loss = sum(part.loss for part in parts) / samples
            if not math.isfinite(loss):
                raise self._diverged(round, "the test loss")
            yield Record(
                round,
                {
                    "test/loss": loss,
                    "test/accuracy": int(self.correct.sum()) / samples,
                    **self.federation.breakdown.metrics(self.correct),
                },
            )

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """w `[P]` and buffers `[Q]`."""
        return self.w.numpy(), self.buffers.numpy()


def _is_finite(vector: torch.Tensor) -> bool:
    """Neither infinities nor NaN survive a sum unseen, which costs a tenth of looking at each number.

    The sum of finite numbers may overflow too.
    """
    return bool(vector.sum().isfinite()) or bool(vector.isfinite().all())
