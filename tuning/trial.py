"""Executes trials in one process, one after the other: server, client actors, stop rules, checkpoints.

Each `step` runs some rounds and returns their records; the driver writes them to MLflow. Client actors stay
for the next trial. What goes on after a death, or after a stop of the whole sweep, is the experiment's own
checkpoint.
"""

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch

from rayfl.config.layers import merge
from rayfl.config.named import NAMED
from rayfl.config.schema import load_config
from rayfl.errors import ClientError, ConfigError, KeyedError, StateLostError, first_line
from rayfl.experiment import client_accuracies, prepare
from rayfl.federation.history import History
from rayfl.federation.server import Record, Server
from rayfl.runtime import cluster
from rayfl.runtime.pool import ActorPool
from rayfl.storage.checkpoint import saved_in
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.storage.storage import Storage, below
from rayfl.training.flat import sha256
from tuning.config import Sweep
from tuning.inputs import SharedInputs, data_key
from tuning.space import Point, layer
from tuning.stopping import needs_metrics, reason

# Rounds of this many seconds go into one report: each costs the driver some milliseconds.
REPORT_SECONDS = 0.5
MUTATED = "mutated/"


@dataclass(frozen=True)
class Job:
    """What a trial is about."""

    experiment: dict[str, Any]
    checkpoints: str | None
    """The directory or URI of all checkpoints; None: there are none."""


class Execution:
    """Executes one trial at a time; a plain class, which Tune's trainable holds."""

    def __init__(self, shared: SharedInputs, sweep: Sweep, group: Any):
        """`group`: the placement group, with a bundle for each client actor."""
        self._shared, self._sweep, self._group = shared, sweep, group
        self._server: Server | None = None

    def step(self) -> dict[str, Any]:
        """Some rounds, and what Tune and the driver want to know of them."""
        self._reported: list[Record] = []
        resumed = max((record.round for record in self._resumed), default=0)
        described: dict[str, Any] = {}
        ending: dict[str, Any] = {}
        try:
            if self._failure is not None:
                raise self._failure
            described = self._described()
            stopped = self._rounds()
            if stopped is not None or self._round == self._last:
                ending = self._ending(stopped)
        except StateLostError:
            raise  # Tune starts the trial again, and it goes on from its checkpoint
        except Exception as error:  # whatever the experiment does wrong is this trial's alone
            ending = {"done": True, **self._failed(error)}
        latest = self._latest(self._sweep.metric)
        return {
            "rounds": self._round,
            "resumed": resumed,
            "records": [tuple(record) for record in self._reported],
            **({self._sweep.metric: latest} if latest is not None else {}),
            **described,
            **ending,
        }

    def save(self, directory: str) -> None:
        """Write server state, client memories and history, for this trial or one that takes them over."""
        checkpoints = self._checkpoints_in(directory, every=None)
        checkpoints.prepare()
        checkpoints.save(self._running.snapshot(), self._history.rows)

    def load(self, directory: str) -> None:
        """Go on from what was saved, with this trial's hyper-parameters."""
        saved = saved_in(Storage(directory))[-1]
        self._running.restore(saved.snapshot())
        self._history = History()
        for round, metrics in saved.history().items():
            self._history.add(round, metrics)
        self._run = self._running.run(self._last)

    def close(self) -> None:
        """End the client actors."""
        for actor in self._actors():
            ray.kill(actor)

    def begin(self, identity: str, job: Job, mutated: Point) -> None:
        """Make the server of this experiment; the client actors stay, if there are any.

        What is wrong with the experiment, the first step tells. `identity`: hash of the experiment as the
        sweep planned it, which is not that of what is `mutated`.
        """
        self._failure: Exception | None = None
        self._history, self._reported = History(), []
        self._resumed: list[Record] = []
        self._is_described = False
        self._mutated = mutated
        try:
            self._experiment = load_config(merge(job.experiment, layer(mutated), NAMED))
            self._start(identity, job)
        except StateLostError:
            raise
        except Exception as error:
            self._failure = error

    def _start(self, identity: str, job: Job) -> None:
        dataset, partition = self._shared.data[data_key(self._experiment)]
        self._prepared = prepared = prepare(self._experiment, ray.get(dataset), ray.get(partition))
        server, client = cluster.actor_arguments(prepared.job(), dataset)
        placement = self._shared.placement
        limit = self._experiment.resources.time_limit_s
        self._server = cluster.make_server(
            server, client, placement, self._group, self._actors(), limit
        )
        rounds = prepared.federation.rounds
        self._last = min(rounds, self._sweep.stop.rounds or rounds)
        self._checkpoints = None
        every = self._experiment.checkpoint.every
        if job.checkpoints is not None and every is not None:
            # Not the config's hash: in population-based training it moves away from the identity.
            location = below(job.checkpoints, identity, self._sweep.name)
            self._checkpoints = self._checkpoints_in(location, every)
            self._checkpoints.prepare()
            if saved := self._checkpoints.latest():
                self._server.restore(saved.snapshot())
                rows = saved.history().items()
                self._resumed = [self._noted(Record(*row)) for row in rows]
        self._run = self._server.run(self._last)

    def _rounds(self) -> str | None:
        """Run rounds until there is something to report; why the trial ends, if a rule of `stop` says so."""
        server, began = self._running, time.monotonic()
        self._reported, self._resumed = self._resumed, []
        interval = self._sweep.scheduler.interval
        looks = needs_metrics(self._sweep.stop)
        for record in self._run:
            self._reported.append(self._noted(record))
            if not (record.round == server.round and "train/loss" in record.metrics):
                continue  # an evaluation, which may come later than its round
            round = record.round
            at_interval = interval is not None and round % interval == 0
            if at_interval or (looks and round % self._experiment.federation.eval_every == 0):
                self._settle(server.settle())
            stopped = reason(
                self._sweep.stop, self._history.rows, self._sweep.metric, self._sweep.mode
            )
            if stopped is not None and round < self._experiment.federation.rounds:
                self._settle(server.settle())
                return stopped
            if self._checkpoints is not None and self._checkpoints.due(round):
                self._settle(server.settle())
                self._checkpoints.save(server.snapshot(), self._history.rows)
            if at_interval and round < self._last:
                return None
            late = time.monotonic() - began > REPORT_SECONDS
            if interval is None and late and round < self._last:  # then its evaluation is to come
                return None
        return None

    def _ending(self, stopped: str | None) -> dict[str, Any]:
        if self._latest(self._sweep.metric) is None:
            found = sorted({key for row in self._history.rows.values() for key in row})
            there = f"there are {', '.join(found)}"
            raise ConfigError("no round has it", "metric", self._sweep.metric, hint=there)
        w = torch.tensor(self._running.parameters()[0])
        clients = client_accuracies(self._prepared, self._running.correct)
        return {"done": True, "stopped": stopped, "model_sha256": sha256(w), "clients": clients}

    def _failed(self, error: Exception) -> dict[str, str]:
        """Why the trial failed, in one line and in full."""
        text = error.traceback if isinstance(error, ClientError) else traceback.format_exc()
        line = (
            str(error.rekeyed(self._sweep.key))
            if isinstance(error, KeyedError)
            else f"{type(error).__name__}: {first_line(error)}"
        )
        return {"failed": line.strip().splitlines()[0], "traceback": text}

    def _settle(self, records: Iterator[Record]) -> None:
        self._reported += map(self._noted, records)

    def _noted(self, record: Record) -> Record:
        if "train/loss" in record.metrics:
            # What is mutated is a metric too: its curve is what population-based training found.
            mutated = {f"{MUTATED}{key}": float(v) for key, v in self._mutated.items()}
            record = record._replace(metrics=record.metrics | mutated)
        self._history.add(*record)
        return record

    def _latest(self, metric: str) -> float | None:
        values = [row[metric] for _, row in sorted(self._history.rows.items()) if metric in row]
        return values[-1] if values else None

    def _described(self) -> dict[str, Any]:
        """Where the client actors run, once they do: no round's time counts their start. Once only."""
        if self._is_described:
            return {}
        self._is_described = True
        return {"actors": self._running.pool.describe()}

    def _checkpoints_in(self, location: str, every: Any) -> CheckpointWriter:
        return CheckpointWriter(
            location=location,
            config_hash=self._experiment.hash,
            config=self._experiment.flat_identity(),
            run_id=None,
            every=None if every == "auto" else every,
            keep_last=self._experiment.checkpoint.keep_last,
        )

    def _actors(self) -> list[Any]:
        pool = self._server.pool if self._server is not None else None
        return pool.actors if isinstance(pool, ActorPool) else []

    @property
    def _running(self) -> Server:
        assert self._server is not None
        return self._server

    @property
    def _round(self) -> int:
        return self._server.round if self._server is not None and self._failure is None else 0
