"""MLflow of a sweep: a parent run, and below it a run for every trial. Only the driver writes.

Tags say what became of a trial, and so what the same command does next time: `rayfl.state` is running,
finished, stopped_early, failed or infeasible, `rayfl.reason` says why, and `rayfl.config_hash` is the
trial's identity. Everything is written by one thread, in order, so that training does not wait for a
tracking server that is slow or away.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from mlflow.entities import Run, ViewType

from rayfl.config.layers import Layer
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import RunError, first_line
from rayfl.federation.history import History
from rayfl.tracking.mlflow import OutageError, RunTracker, TrackingStore, retry_during_outage
from tuning.config import Sweep
from tuning.plan import PlannedTrial
from tuning.states import SUCCEEDED, State

_LONGEST_TAG = 5000  # characters; MLflow's limit, and room for its count


@dataclass(frozen=True)
class PreviousRun:
    """A trial's run, as an earlier command left it."""

    run_id: str
    state: State
    reason: str
    rules: str
    """What could have ended it early, as JSON."""
    value: float | None
    """Last value of the sweep's metric."""
    rounds: int


@dataclass
class _ActiveRun:
    """A trial's run while it is written."""

    tracker: RunTracker
    targets: tuple[float, ...]
    history: History = field(default_factory=History)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        self.tracker.finish(status, self.history.summary(self.targets))


class SweepTracker:
    """The runs of one sweep."""

    def __init__(self, store: TrackingStore, sweep: Sweep):
        """Open the sweep's parent run; a sweep that was begun before goes on in its own."""
        self._store, self._sweep, self._client = store, sweep, store.client
        self.rules = json.dumps(sweep.rules, sort_keys=True)
        self.known = {
            run.data.tags["rayfl.config_hash"]: self._known(run) for run in self._runs("experiment")
        }
        """By config hash."""
        self.parent_id = self._parent()
        self._live: dict[str, _ActiveRun] = {}
        self._writer = BackgroundWriter(store.uri)

    def ended(self, hash: str) -> PreviousRun | None:
        """What is known of a trial that need not run again."""
        known = self.known.get(hash)
        if known is None:
            return None
        by_rules = known.state == "stopped_early" and known.rules == self.rules
        return known if known.state == "finished" or by_rules else None

    def start(self, trial: PlannedTrial, data: Dataset, partition: Partition) -> None:
        """Begin a trial's run, or go on with the one that it has. Again: nothing."""

        def write() -> None:
            if trial.hash in self._live:
                return
            known = self.known.get(trial.hash)
            tags = self._tags(trial.point) | {"rayfl.state": "running", "rayfl.reason": ""}
            assert trial.experiment is not None
            run_id = known.run_id if known else self._find(trial.hash)
            tracker = RunTracker(self._store, trial.experiment, data.name, run_id, tags)
            if run_id is not None:
                for key, value in tags.items():
                    tracker.tag(key, value)
            tracker.describe_config()
            tracker.describe_data(data, partition)
            self._live[trial.hash] = _ActiveRun(tracker, trial.experiment.tracking.targets)

        self._writer.put(write)

    def actors(self, hash: str, actors: list[dict[str, Any]]) -> None:
        """Record where a trial's client actors run."""
        self._writer.put(lambda: self._live[hash].tracker.describe_actors(actors))

    def clients(self, hash: str, clients: pd.DataFrame) -> None:
        """Record each client's accuracy at the end of a trial."""
        self._writer.put(lambda: self._live[hash].tracker.describe_clients(clients))

    def log(self, hash: str, records: list[tuple[int, Mapping[str, float]]]) -> None:
        """Record rounds of a trial."""

        def write() -> None:
            live = self._live[hash]
            for round, metrics in records:
                if new := live.history.add(round, metrics):
                    live.tracker.log(round, new)

        self._writer.put(write)

    def end(
        self,
        hash: str,
        state: State,
        reason: str = "",
        traceback: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End a trial's run."""

        def write() -> None:
            live = self._live.get(hash)
            if live is None:
                return
            if traceback:
                live.tracker.attach("traceback.txt", traceback)
            live.finish("FINISHED" if state in SUCCEEDED else "FAILED")
            # The state comes last: it says that everything else is there.
            for key, value in {
                **(tags or {}),
                "rayfl.reason": reason,
                "rayfl.state": state,
            }.items():
                live.tracker.tag(key, value[:_LONGEST_TAG])
            del self._live[hash]

        self._writer.put(write)

    def infeasible(self, trial: PlannedTrial) -> None:
        """Record a trial that cannot be: a run that failed before it began."""

        def write() -> None:
            tags = self._tags(trial.point) | {
                "rayfl.config_hash": trial.hash,
                "rayfl.kind": "experiment",
                "rayfl.seed": str(trial.seed),
                "rayfl.state": "infeasible",
                "rayfl.reason": (trial.problem or "")[:_LONGEST_TAG],
            }
            run_id = self._find(trial.hash)
            if run_id is None:
                name = f"infeasible-{trial.hash}"
                run = self._client.create_run(self._store.experiment_id, run_name=name, tags=tags)
                run_id = run.info.run_id
                for key, value in {**trial.point, "seed": trial.seed}.items():
                    text = value if isinstance(value, str) else json.dumps(value)
                    self._client.log_param(run_id, key, text)
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value)
            self._client.set_terminated(run_id, "FAILED")

        self._writer.put(lambda: retry_during_outage(self._store.uri, write))

    def finish(self, status: str) -> None:
        """Write all that is left, end what still runs as KILLED, and end the parent run."""

        def write() -> None:
            for live in self._live.values():  # their state stays `running`: they can go on
                live.finish("KILLED")
            self._live.clear()
            state = "finished" if status == "FINISHED" else "running"
            self._client.set_tag(self.parent_id, "rayfl.state", state)
            self._client.set_terminated(self.parent_id, status)

        self._writer.put(write)
        self._writer.close()

    def results(self) -> dict[str, Run]:
        """The trials' runs by config hash."""
        return {run.data.tags["rayfl.config_hash"]: run for run in self._runs("experiment")}

    def _parent(self) -> str:
        runs = list(self._runs("sweep"))
        if runs:
            run_id = runs[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            tags = {"rayfl.kind": "sweep", "rayfl.sweep": self._sweep.name}
            name = self._sweep.name
            run = self._client.create_run(self._store.experiment_id, run_name=name, tags=tags)
            run_id = run.info.run_id
        self._client.set_tag(run_id, "rayfl.state", "running")
        self._client.set_tag(run_id, "rayfl.metric", self._sweep.metric)
        self._client.set_tag(run_id, "rayfl.mode", self._sweep.mode)
        self._client.log_text(run_id, self._sweep.to_yaml(), "sweep.yaml")
        return run_id

    def _find(self, hash: str) -> str | None:
        """The run of a trial: also one whose making was not answered, when the store went away."""
        found = self._runs("experiment", f" and tags.`rayfl.config_hash` = '{hash}'")
        return next((run.info.run_id for run in found), None)

    def _runs(self, kind: str, also: str = "") -> Iterator[Run]:
        """The sweep's runs of a kind, the oldest first; another one of the same identity is left out."""
        which = f"tags.`rayfl.sweep` = '{self._sweep.name}' and tags.`rayfl.kind` = '{kind}'{also}"
        token, seen = None, set()
        while True:
            page = self._client.search_runs(
                [self._store.experiment_id],
                which,
                ViewType.ACTIVE_ONLY,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                identity = run.data.tags.get("rayfl.config_hash")
                if identity not in seen:
                    seen.add(identity)
                    yield run
            token = page.token
            if not token:
                return

    def _tags(self, point: Layer) -> dict[str, str]:
        return {
            "mlflow.parentRunId": self.parent_id,
            "rayfl.sweep": self._sweep.name,
            "rayfl.point": json.dumps(point, sort_keys=True)[:_LONGEST_TAG],
            "rayfl.rules": self.rules[:_LONGEST_TAG],
        }

    def _known(self, run: Run) -> PreviousRun:
        tags, metrics = run.data.tags, run.data.metrics
        return PreviousRun(
            run_id=run.info.run_id,
            state=tags.get("rayfl.state", "running"),  # type: ignore[arg-type]
            reason=tags.get("rayfl.reason", ""),
            rules=tags.get("rayfl.rules", ""),
            value=metrics.get(self._sweep.metric),
            rounds=int(metrics.get("rounds", 0)),
        )


class BackgroundWriter:
    """A thread that makes calls in order, each again and again while the tracking store is away."""

    def __init__(self, uri: str):
        self._uri = uri
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], None]) -> None:
        """Make this call after those before it. Raises what an earlier one raised."""
        if self._error is not None:
            raise RunError(f"MLflow at {self._uri}: {first_line(self._error)}") from self._error
        self._calls.put(call)

    def close(self) -> None:
        """Wait until all calls are made; OutageError if the store stays away for minutes."""
        self._closing.set()
        self._calls.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)  # in pieces, so that an interrupt gets through
        if isinstance(self._error, RunError):
            raise self._error
        if self._error is not None:
            raise RunError(f"MLflow at {self._uri}: {first_line(self._error)}") from self._error

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._make(call)
            except BaseException as error:  # the driver raises it
                self._error = error
                return

    def _make(self, call: Callable[[], None]) -> None:
        while True:
            try:
                return retry_during_outage(self._uri, call)
            except OutageError:
                if self._closing.is_set():
                    raise
