"""Executes trials in one process, one after the other: server, client actors, stop rules, checkpoints.

Each `step` runs some rounds and returns their records; the driver writes them to MLflow. Client actors stay
for the next trial. What goes on after a death, or after a stop of the whole sweep, is the experiment's own
checkpoint.
"""

import contextlib
import time
import traceback
from dataclasses import dataclass
from typing import Any

import ray
import torch

from rayfl.config.layers import merge, nested
from rayfl.config.named import NAMED
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError, KeyedError, OwnCodeError, StateLostError, first_line
from rayfl.federation.memories import MemoryRoom
from rayfl.federation.metrics import EvaluationMetrics, Metrics, RoundMetrics
from rayfl.federation.session import Session
from rayfl.inputs import data_key
from rayfl.prepare import prepare
from rayfl.prepared import client_accuracies
from rayfl.provenance import Provenance, trial_folder
from rayfl.runtime.actors import make_server, stored
from rayfl.runtime.pool import ActorPool
from rayfl.storage.checkpoint import newest_in, saved_in
from rayfl.storage.memory_files import temporary_folder
from rayfl.storage.storage import Storage, below
from rayfl.training.flat import sha256
from rayfl.weights import Weights
from tuning.config import Sweep
from tuning.shared_inputs import SharedInputs
from tuning.space import Point
from tuning.stopping import needs_metrics, reason

# Rounds of this many seconds go into one report: each costs the driver some milliseconds.
REPORT_SECONDS = 0.5
# Beginnings of the names of metrics that may be due after later rounds alone.
LATE = ("flatness/", "average/", "personal/", "own/")
MUTATED = "mutated/"
MODEL_FILE = "model.safetensors"
"""The final model, beside a trial's checkpoints until the driver has taken it to MLflow."""


@dataclass(frozen=True)
class TrialSpec:
    """The experiment of a trial."""

    experiment: dict[str, Any]
    checkpoints: str
    """The directory or URI of all checkpoints."""
    provenance: Provenance
    taken_over: str | None = None
    """Location of another trial's checkpoint, from which it goes on if it has no later one of its own."""


class MetricError(ConfigError):
    """The sweep's metric is none that a round has."""


class Execution:
    """Executes one trial at a time; a plain class, which Tune's trainable holds."""

    def __init__(self, shared: SharedInputs, sweep: Sweep, group: Any):
        """`group`: the placement group, with a bundle for each client actor."""
        self._shared, self._sweep, self._group = shared, sweep, group
        self._session: Session | None = None
        self._folder = contextlib.ExitStack()

    def step(self) -> dict[str, Any]:
        """Run some rounds; everything that Tune and the driver want to know of them."""
        self._reported, self._resumed = self._resumed, []
        report: dict[str, Any] = {
            "resumed": max((metrics.round for metrics in self._reported), default=0)
        }
        try:
            if self._failure is not None:
                raise self._failure
            if not self._is_described:  # once the actors run: no round's time counts their start
                report["actors"] = self.session.describe()
                self._is_described = True
            stopped = None if self._awaits_decision() else self._run_rounds()
            if stopped is not None or self._round == self._last:
                report |= self._ending(stopped)
        except StateLostError:
            raise  # Tune starts the trial again, and it goes on from its checkpoint
        except Exception as error:  # whatever the experiment does wrong is this trial's alone
            report |= {"done": True, **self._failed(error)}
        if (latest := self._latest()) is not None:
            report[self._sweep.metric] = latest
            self._reported += self._withheld()
        return report | {"rounds": self._round, "records": [*map(tuple, self._reported)]}

    def save(self, directory: str) -> None:
        """Write server state, client memories and history, for this trial or one that takes them over."""
        checkpoints = self._prepared.checkpoint_writer(directory)
        checkpoints.prepare()
        checkpoints.save(self.session.server.snapshot(), self.session.history.rows)

    def load(self, directory: str) -> None:
        """Go on from what was saved, with this trial's hyper-parameters."""
        self.session.go_on(saved_in(Storage(directory))[-1])
        self._rounds = self.session.rounds(self._last)

    def close(self) -> None:
        """End the client actors."""
        self._let_go()
        for actor in self.actors():
            ray.kill(actor)

    def _let_go(self) -> None:
        """Be done with the files of the last trial's memories."""
        if self._session is not None:
            self._session.server.memories.close()
        self._folder.close()

    def begin(self, identity: str, spec: TrialSpec, mutated: Point) -> None:
        """Make the server of this experiment; the client actors stay, if there are any.

        The first step raises what is wrong with the experiment. `identity`: hash of the experiment as the
        sweep planned it, which is not that of what is `mutated`.
        """
        self._failure: Exception | None = None
        self._reported: list[Metrics] = []
        self._resumed: list[Metrics] = []
        self._is_described = False
        try:
            self._experiment = load_config(merge(spec.experiment, nested(mutated), NAMED))
            self._start(identity, spec, mutated)
        except StateLostError:
            raise
        except Exception as error:
            self._failure = error

    def _start(self, identity: str, spec: TrialSpec, mutated: Point) -> None:
        self._let_go()
        dataset, partition = self._shared.data[data_key(self._experiment)]
        self._prepared = prepared = prepare(self._experiment, ray.get(dataset), ray.get(partition))
        if difference := spec.provenance.difference(prepared.provenance):
            raise ConfigError(f"the sweep began with {difference}; start it again")
        server, client = prepared.specs()
        limit = self._experiment.resources.time_limit_s
        checkpoints, temporary = None, None
        if self._experiment.checkpoint.every is not None:
            # Not the config's hash: in population-based training it moves away from the identity.
            folder = trial_folder(self._sweep.name, spec.provenance.tags)
            location = below(spec.checkpoints, identity, folder)
            checkpoints = prepared.checkpoint_writer(location)
            checkpoints.prepare()
        else:
            temporary = self._folder.enter_context(temporary_folder())
        made = make_server(
            server,
            stored(client, dataset),
            self._shared.placement,
            self._group,
            actors=self.actors(),
            time_limit=limit,
            tier=MemoryRoom(self._shared.memory_bytes, temporary).tier(checkpoints),
        )
        self._last = self._sweep.rounds(self._experiment)
        # The curve of what is mutated is what population-based training found.
        constants = {f"{MUTATED}{key}": float(value) for key, value in mutated.items()}
        self._session = Session(made, checkpoints, constants)
        if checkpoints is not None:
            self._resumed = [*self._session.restore()]
            others, own = (
                newest_in(Storage(spec.taken_over)) if spec.taken_over else None,
                self._round,
            )
            if others is not None and others.round >= own:
                self._resumed += [row for row in self._session.go_on(others) if row.round > own]
        self._rounds = self._session.rounds(self._last)

    def _withheld(self) -> list[Metrics]:
        """Return what is known of the last round, and would only be handed out after its report."""
        round, row = self._round, self.session.history.rows.get(self._round, {})
        reported = {
            key for metrics in self._reported if metrics.round == round for key in metrics.values
        }
        rest = {key: value for key, value in row.items() if key not in reported}
        return [EvaluationMetrics(round, rest)] if rest else []

    def _awaits_decision(self) -> bool:
        """Return True at the first report after a checkpoint of a round that is to be decided on."""
        scheduler = self._sweep.scheduler
        is_resumed = any(metrics.round == self._round for metrics in self._reported)
        return is_resumed and self._round in scheduler.rounds(self._last)

    def _run_rounds(self) -> str | None:
        """Run rounds until there is something to report; why the trial ends, if a rule of `stop` says so."""
        session, began = self.session, time.monotonic()
        rules, scheduler = self._sweep.stop, self._sweep.scheduler
        decisions = scheduler.rounds(self._last)
        is_exact = len(decisions) > 0 and not scheduler.decides_on_points
        eval_every = self._experiment.federation.eval_every
        for metrics in self._rounds:
            self._reported.append(metrics)
            if not isinstance(metrics, RoundMetrics):
                # Clients' own models and the flatness come by themselves; what is due later may be missing.
                is_late = self._sweep.metric.startswith(LATE)
                if "test/loss" in metrics.values and not is_late:
                    self._check_metric()
                continue  # an evaluation, which may come later than its round
            round = metrics.round
            if round in decisions or (needs_metrics(rules) and round % eval_every == 0):
                self._reported += session.settle()
            stopped = reason(rules, session.history.rows, self._sweep.metric, self._sweep.mode)
            if stopped is not None and round < self._experiment.federation.rounds:
                self._reported += session.settle()
                return stopped
            if round in decisions:
                session.save()  # the trial may be paused, and no other one gets beyond it
                return None
            late = time.monotonic() - began > REPORT_SECONDS
            if late and not is_exact and round < self._last:  # then its evaluation is to come
                return None
        return None

    def _ending(self, stopped: str | None) -> dict[str, Any]:
        session = self.session
        self._check_metric()
        session.server.memories.settle()  # the driver may delete the folder now
        if self._sweep.keep_checkpoints:
            session.conclude()
        final = session.final()
        if session.checkpoints and self._sweep.logs_model(self._experiment):
            # Not with the report: Ray Tune would keep that of every trial.
            flat = final.w, final.buffers
            model = Weights.of(self._experiment, self._prepared.model, flat, self._round)
            Storage(session.checkpoints.location).write(MODEL_FILE, model.safetensors())
        clients = client_accuracies(self._prepared, final.scores, final.personal)
        digest = sha256(torch.tensor(final.w))
        return {"done": True, "stopped": stopped, "model_sha256": digest, "clients": clients}

    def _check_metric(self) -> None:
        """Raise ConfigError once there is an evaluation, and no round has the sweep's metric."""
        if self._latest() is None:
            rows = self.session.history.rows.values()
            there = f"there are {', '.join(sorted({key for row in rows for key in row}))}"
            raise MetricError("no round has it", "metric", self._sweep.metric, hint=there)

    def _failed(self, error: Exception) -> dict[str, Any]:
        """The error that ended the trial, in one line and in full."""
        text = error.traceback if isinstance(error, OwnCodeError) else traceback.format_exc()
        line = (
            str(error.rekeyed(self._sweep.key))
            if isinstance(error, KeyedError)
            else f"{type(error).__name__}: {first_line(error)}"
        )
        # A method's own scalars, momentum and clients' models are its alone; others all trials have, or none.
        own = self._sweep.metric.startswith(("server/", "update/cos_momentum", "personal/"))
        ends_all = isinstance(error, MetricError) and not own
        return {
            "failed": line.strip().splitlines()[0],
            "traceback": text,
            "ends_sweep": ends_all,
        }

    def _latest(self) -> float | None:
        """Last value of the sweep's metric."""
        if self._failure is not None:
            return None
        rows, metric = self.session.history.rows, self._sweep.metric
        return next(
            (rows[r][metric] for r in sorted(rows, reverse=True) if metric in rows[r]), None
        )

    def actors(self) -> list[Any]:
        pool = self._session.server.pool if self._session is not None else None
        return pool.actors if isinstance(pool, ActorPool) else []

    @property
    def session(self) -> Session:
        assert self._session is not None
        return self._session

    @property
    def _round(self) -> int:
        return 0 if self._failure is not None else self.session.server.round
