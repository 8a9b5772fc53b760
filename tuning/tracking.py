"""MLflow of a sweep: a parent run with a child run for every trial. Only the driver writes.

The tags of a trial decide what the same command does next time: `rayfl.state` is running, finished,
stopped_early, failed or infeasible, `rayfl.reason` is its reason, and `rayfl.config_hash` identifies the
trial. One background thread writes everything in order.
"""

import functools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfl.analysis.states import SUCCEEDED, State
from rayfl.analysis.store import search_runs
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import RunError
from rayfl.federation.likeness import unlike
from rayfl.provenance import ANSWERED_TAG
from rayfl.text import redacted, written
from rayfl.tracking.mlflow import RunTracker
from rayfl.tracking.outages import BackgroundWriter, retry_during_outage
from rayfl.tracking.run import Status
from rayfl.tracking.store import TrackingStore
from tuning.config import Sweep
from tuning.lease import Lease
from tuning.overview import record_settings
from tuning.plan import PlannedTrial
from tuning.trial_run import TrialRun

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_TOLD = "told.json"  # an artifact of the sweep's run
_LONGEST_TAG = 5000  # characters; MLflow's limit with a margin


class SweepTracker:
    """Writer of the runs of one sweep."""

    def __init__(self, store: TrackingStore, sweep: Sweep):
        """Create the sweep's parent run, or reopen that of an earlier command."""
        self._store, self._sweep, self._client = store, sweep, store.client
        self.rules = json.dumps(sweep.rules, sort_keys=True)
        self.parent_id = self._parent()
        self.lease = Lease(self._client, self.parent_id, sweep.name)
        self._begin()
        self.known = self.results()
        """Runs of earlier commands, by identity."""
        in_order = sorted(self.known.values(), key=lambda run: run.answered)
        self._answered = {run.identity[0]: run.answered for run in in_order}
        """Time of the last answer with each config, by its hash."""
        self._live: dict[str, RunTracker] = {}
        self._lost: list[str] = []
        """Runs of trials that were deleted while they ran."""
        self._warned = ""
        self._writer = BackgroundWriter(store.uri)

    def ended(self, trial: PlannedTrial) -> TrialRun | None:
        """Return the earlier run of a trial that need not run again."""
        known = self.known.get(trial.identity)
        if known is None:
            return None
        by_rules = known.state == "stopped_early" and known.rules == self.rules
        return known if known.state == "finished" or by_rules else None

    def answer(self, known: TrialRun) -> None:
        """Record that an earlier run is the result of a trial, if a later run has other code or data."""
        if self._answered[known.identity[0]] > known.answered:
            now = str(int(time.time() * 1000))
            write = functools.partial(self._client.set_tag, known.run_id, ANSWERED_TAG, now)
            self._writer.put(lambda: retry_during_outage(self._store.uri, write))

    def start(self, trial: PlannedTrial, data: Dataset, partition: Partition) -> None:
        """Start or reopen a trial's run; no effect if it is open."""

        def write() -> None:
            if trial.hash in self._live:
                return
            known = self.known.get(trial.identity)
            tags = self._tags(trial) | {"rayfl.state": "running", "rayfl.reason": ""}
            run_id = known.run_id if known else self._find(trial)
            tracker = RunTracker(self._store, trial.config, data.name, run_id, tags, trial.name)
            if run_id is not None:
                for key, value in tags.items():
                    tracker.tag(key, value)
            tracker.describe_config()
            tracker.describe_data(data, partition)
            self._live[trial.hash] = tracker

        self._writer.put(write)

    def record(self, hash: str, result: Mapping[str, Any]) -> None:
        """Record what a trial has reported: rounds, and once its client actors and their final accuracies."""

        def write() -> None:
            live = self._live[hash]
            if "actors" in result:
                live.describe_actors(result["actors"])
                if (warning := unlike(result["actors"])) and warning != self._warned:
                    self._warned = warning
                    logger.warning("%s", warning)
            for round, metrics in result["records"]:
                live.log(round, metrics)
            if result.get("clients") is not None:
                live.describe_clients(result["clients"])

        self._writer.put(write)

    def attach_model(self, hash: str, model: Callable[[], bytes | None]) -> None:
        """Record the final model of a trial that ends, if `model` has one."""

        def write() -> None:
            live = self._live.get(hash)
            if live is not None and (content := model()) is not None:
                live.attach_model(content)

        self._writer.put(write)

    def end(
        self, hash: str, state: State, reason: str, traceback: str, tags: Mapping[str, str]
    ) -> None:
        """End a trial's run."""

        def write() -> None:
            live = self._live.get(hash)
            if live is None:
                return
            if traceback:
                live.attach("traceback.txt", traceback)
            live.finish("FINISHED" if state in SUCCEEDED else "FAILED")
            # The state is written last, because it implies that everything else is there.
            last = {**tags, "rayfl.reason": reason, "rayfl.state": state}
            for key, value in last.items():
                live.tag(key, value[:_LONGEST_TAG])
            if live.lost:
                self._lost.append(live.run_id)
            del self._live[hash]

        self._writer.put(write)

    def afterwards(self, act: Callable[[], None]) -> None:
        """Call this once all that is recorded so far is written."""
        self._writer.put(act)

    def infeasible(self, trial: PlannedTrial) -> None:
        """Record an infeasible trial as a failed run."""

        def write() -> None:
            tags = self._tags(trial) | {
                "rayfl.config_hash": trial.hash,
                "rayfl.kind": "experiment",
                "rayfl.seed": str(trial.seed),
                "rayfl.state": "infeasible",
                "rayfl.reason": (trial.problem or "")[:_LONGEST_TAG],
            }
            run_id = self._find(trial)
            if run_id is None:
                name = trial.name
                run = self._client.create_run(self._store.experiment_id, run_name=name, tags=tags)
                run_id = run.info.run_id
                for key, value in {**trial.point, "seed": trial.seed}.items():
                    self._client.log_param(run_id, key, written(value))
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value)
            self._client.set_terminated(run_id, "FAILED")

        self._writer.put(lambda: retry_during_outage(self._store.uri, write))

    def finish(self, status: Status) -> None:
        """Write the rest, end the open runs as KILLED, and end the parent run.

        Raises RunError if runs of trials were deleted while they ran.
        """

        def write() -> None:
            for live in self._live.values():  # their state stays `running`, so they can be resumed
                live.finish("KILLED")
            self._live.clear()
            state = "finished" if status == "FINISHED" else "running"
            self._client.set_tag(self.parent_id, "rayfl.state", state)
            self._client.set_terminated(self.parent_id, status)

        self._writer.put(write)
        try:
            self._writer.close()
        finally:
            self.lease.release()
        if self._lost and status == "FINISHED":
            raise deleted(self._lost)

    def results(self) -> dict[tuple[str, str, str], TrialRun]:
        """Read the trials' runs by identity; the oldest, if one has several."""
        newest_first = reversed(list(self._runs("experiment")))
        found = [TrialRun.of(run, self._sweep.metric) for run in newest_first]
        return {run.identity: run for run in found}

    def values(self, run_id: str) -> dict[int, float]:
        """Read the sweep's metric of a trial's run by round."""
        history = self._client.get_metric_history(run_id, self._sweep.metric)
        return {metric.step: metric.value for metric in history}

    def told(self) -> list[list[int]]:
        """Read what `record_told` has recorded for this search of this space; empty: nothing."""
        if not any(file.path == _TOLD for file in self._client.list_artifacts(self.parent_id)):
            return []
        with tempfile.TemporaryDirectory() as folder:
            path = self._client.download_artifacts(self.parent_id, _TOLD, folder)
            content = json.loads(Path(path).read_text("utf-8"))
        return content["told"] if content["of"] == self._search() else []

    def record_told(self, told: list[list[int]]) -> None:
        """Record the suggestions whose results a searcher was told before each of its suggestions."""
        text = json.dumps({"of": self._search(), "told": told})
        write = functools.partial(self._client.log_text, self.parent_id, text, _TOLD)
        self._writer.put(lambda: retry_during_outage(self._store.uri, write))

    def _search(self) -> dict[str, Any]:
        """Return all that decides what a searcher suggests, but for the results."""
        content = self._sweep.model_dump(mode="json", include={"space", "search", "metric", "mode"})
        content["search"].pop("num_samples", None)
        return content

    def _parent(self) -> str:
        """Return the id of the sweep's run, which is made if there is none."""
        name, run = self._sweep.name, next(self._runs("sweep"), None)
        if run is None:
            tags = {"rayfl.kind": "sweep", "rayfl.sweep": name}
            made = self._client.create_run(self._store.experiment_id, run_name=name, tags=tags)
            run = next(self._runs("sweep"))  # another process may have made one at the same time
            if run.info.run_id != made.info.run_id:
                self._client.delete_run(made.info.run_id)
        return run.info.run_id

    def _begin(self) -> None:
        """Record what the sweep is now."""
        run_id = self.parent_id
        record_settings(self._client, run_id, self._sweep)
        self._client.update_run(run_id, status="RUNNING")
        self._client.set_tag(run_id, "rayfl.state", "running")
        self._client.set_tag(run_id, "rayfl.metric", self._sweep.metric)
        self._client.set_tag(run_id, "rayfl.mode", self._sweep.mode)
        self._client.log_text(run_id, redacted(self._sweep.to_yaml()), "sweep.yaml")

    def _find(self, trial: PlannedTrial) -> str | None:
        """Return the id of a trial's run, even if an outage hid the answer to its creation."""
        tags = {"rayfl.config_hash": trial.hash} | trial.provenance.tags
        which = "".join(f" and tags.`{key}` = '{value}'" for key, value in tags.items())
        return next((run.info.run_id for run in self._runs("experiment", which)), None)

    def _runs(self, kind: str, also: str = "") -> "Iterator[Run]":
        """Yield the sweep's runs of a kind, the oldest first."""
        which = f"tags.`rayfl.sweep` = '{self._sweep.name}' and tags.`rayfl.kind` = '{kind}'{also}"
        oldest_first = "attributes.start_time ASC"
        return search_runs(self._client, [self._store.experiment_id], which, oldest_first)

    def _tags(self, trial: PlannedTrial) -> dict[str, str]:
        return {
            **trial.provenance.tags,
            "mlflow.parentRunId": self.parent_id,
            "rayfl.sweep": self._sweep.name,
            "rayfl.point": json.dumps(trial.point, sort_keys=True)[:_LONGEST_TAG],
            "rayfl.rules": self.rules[:_LONGEST_TAG],
        }


def deleted(runs: Sequence[str]) -> RunError:
    """Return the error that these MLflow runs of trials are gone."""
    return RunError(
        f"of the trials' MLflow runs these were deleted meanwhile: {', '.join(runs)}; the same command runs "
        "their trials anew, and `mlflow runs restore` brings a run back"
    )
