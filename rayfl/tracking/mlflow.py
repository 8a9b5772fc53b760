"""MLflow: one run per experiment, one batch of metrics per finished round.

The default store is an sqlite file in the working directory. Metrics are written as rounds finish (rounds
faster than `FLUSH_SECONDS` together), so a killed run keeps its finished rounds.
"""

import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Dataset as MLflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from rayfl.config.schema import Experiment
from rayfl.config.sections import LONGEST_RUN_NAME
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError, RunError, first_line
from rayfl.federation.history import History
from rayfl.text import redacted, written
from rayfl.tracking.outages import LONGEST_PAUSE_SECONDS, is_outage, retry_during_outage
from rayfl.tracking.run import MODEL, Status
from rayfl.tracking.store import TrackingStore
from rayfl.tracking.tags import tags_of

FLUSH_SECONDS = 0.25
_METRICS_PER_BATCH = 1000  # MLflow's limit
_MOST_ROWS = 100_000  # of a table as text, 3 MB

logger = logging.getLogger(__name__)


class RunTracker:
    """Writer of one MLflow run."""

    def __init__(
        self,
        store: TrackingStore,
        experiment: Experiment,
        dataset: str,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        setting: str = "",
    ):
        """Start a run with additional `tags`, or resume the run `run_id`.

        `setting`: distinguishes it from the other runs of a sweep, in its name.

        Raises ConfigError if the store has no such run, or it was deleted.
        """
        self.lost: RunError | None = None
        """Error to raise once the run was deleted, after which nothing is written; None before."""
        self._params: set[str] = set()
        """Params that a resumed run already has, which MLflow does not let change."""
        self._client, self._experiment, self._store = store.client, experiment, store
        self._history, self._pending = History(), list[Metric]()
        self._flushed = 0.0
        self._pause = 0.0
        """Seconds before the next attempt, during an outage."""
        self._recorded: dict[str, set[int]] = {}
        """Steps of each metric that a resumed run already has."""
        self.run_id: str = (
            self._resume(store, run_id)
            if run_id
            else self._start(store, dataset, tags or {}, setting)
        )

    def _start(
        self, store: TrackingStore, dataset: str, tags: Mapping[str, str], setting: str
    ) -> str:
        experiment = self._experiment
        given = experiment.tracking.run_name
        if setting:
            name = (
                f"{given} {setting}"
                if given and len(given + setting) < LONGEST_RUN_NAME
                else setting
            )
        else:
            name = given or f"{experiment.algorithm_name}-{dataset}-seed{experiment.seed}"
        run = self._client.create_run(
            store.experiment_id,
            run_name=name[:LONGEST_RUN_NAME],
            tags=tags_of(experiment) | dict(tags),
        )
        return run.info.run_id

    def _resume(self, store: TrackingStore, run_id: str) -> str:
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            raise ConfigError(
                f"--resume: MLflow run {run_id}, to which the checkpoint belongs, is not in {store.address} "
                f"({first_line(error)}); set tracking.uri to its store, or tracking.enabled=false",
                keys=("tracking.uri", "tracking.enabled"),
            ) from error
        if run.info.lifecycle_stage == "deleted":
            raise ConfigError(
                f"MLflow run {run_id} in {store.address} was deleted; restore it with "
                f"`{store.command(f'runs restore --run-id {run_id}')}`, or go on without it with "
                "tracking.enabled=false",
                keys=("tracking.enabled",),
            )
        self._params = set(run.data.params)
        self._client.update_run(run_id, status="RUNNING")
        self._recorded = {
            key: {metric.step for metric in self._client.get_metric_history(run_id, key)}
            for key in run.data.metrics
        }
        return run_id

    def describe_config(self) -> None:
        """Record the resolved config.

        A resumed run keeps the params that it has: only places can differ, and MLflow changes none.
        """
        flat = self._experiment.flat()
        # One spelling of each value, because queries compare params as text.
        params = [
            Param(key, redacted(written(value)))
            for key, value in flat.items()
            if key not in self._params
        ]
        for i in range(0, len(params), 100):  # MLflow's limit
            self._write(self._client.log_batch, params=params[i : i + 100])
        self.attach("config.yaml", redacted(self._experiment.to_yaml()))

    def attach(self, name: str, text: str) -> None:
        """Record a text file."""
        self._write(self._client.log_text, text, name)

    def describe_actors(self, actors: list[dict[str, Any]]) -> None:
        """Record the nodes, engine and precision of the client actors."""
        self.tag("rayfl.device", actors[0]["device"])
        self.tag("rayfl.processor", ", ".join(sorted({actor["processor"] for actor in actors})))
        self.tag("rayfl.engine", actors[0]["engine"])
        self.tag("rayfl.precision", actors[0]["precision"])
        self._write(self._client.log_dict, {"client actors": actors}, "actors.json")

    def describe_data(self, data: Dataset, partition: Partition) -> None:
        """Record the dataset with the partition's digest, its histogram and its picture."""
        from rayfl.data.picture import heatmap, shown  # imports matplotlib, while the actors start

        clients, (ids, categories, histogram) = len(partition.sizes), shown(data, partition)
        profile = {"clients": clients, "samples": len(partition.indices)}
        if len(partition.validation):
            profile["validation"] = len(partition.validation)
        entry = MLflowDataset(
            name=data.name,
            digest=partition.digest()[:36],  # MLflow's limit
            source_type="rayfl",
            source=json.dumps(
                {k: v for k, v in self._experiment.flat().items() if k.startswith("data.")}
            ),
            profile=json.dumps(profile),
        )
        context = [InputTag("mlflow.data.context", "train")]
        self._write(self._client.log_inputs, [DatasetInput(entry, context)])
        rows = {"classes": categories, "clients": histogram.tolist()}
        if len(ids) < clients:
            rows["ids"] = ids.tolist()
        self._write(self._client.log_dict, rows, "partition/histogram.json")
        pictures = self._store.pictures
        if entry.digest not in pictures:
            content = io.BytesIO()
            heatmap(histogram, categories, content, clients)
            pictures[entry.digest] = content.getvalue()
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "histogram.png"
            picture.write_bytes(pictures[entry.digest])
            self._write(self._client.log_artifact, str(picture), "partition")

    def describe_clients(self, clients: pd.DataFrame) -> None:
        """Record the final accuracy of each client: a table to read, or a file of a tenth of its size."""
        if len(clients) <= _MOST_ROWS:
            self.attach("evaluation/clients.csv", clients.to_csv())
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clients.parquet"
            clients.to_parquet(path)
            self._write(self._client.log_artifact, str(path), "evaluation")

    def attach_model(self, content: bytes) -> None:
        """Record the final model, the content of a .safetensors file."""
        place, _, name = MODEL.rpartition("/")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self._write(self._client.log_artifact, str(path), place)

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        """Record the new metrics of a round, now or together with those of the next rounds.

        A resumed run does not record again what it already has.
        """
        self._log(round, self._history.add(round, metrics))

    def _log(self, round: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._pending += [
            Metric(key, value, now, round)
            for key, value in metrics.items()
            if round not in self._recorded.get(key, ())
        ]
        if time.monotonic() - self._flushed >= FLUSH_SECONDS + self._pause:
            self.flush()

    def flush(self) -> None:
        """Write the logged metrics; during an outage a later call writes them."""
        try:
            self._unless_lost(self._flush)
        except Exception as error:
            if not is_outage(error):
                raise
            self._pause = min(2 * self._pause or 1.0, LONGEST_PAUSE_SECONDS)
            self._flushed = time.monotonic()
            logger.warning("MLflow is away; the metrics wait (%s)", redacted(first_line(error)))

    def _flush(self) -> None:
        while self._pending:
            # Removed after the write, since an interrupt may come in between; a metric that is written twice
            # changes nothing.
            self._client.log_batch(self.run_id, metrics=self._pending[:_METRICS_PER_BATCH])
            self._pending = self._pending[_METRICS_PER_BATCH:]
        self._flushed, self._pause = time.monotonic(), 0.0

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self._write(self._client.set_tag, key, value)

    def finish(self, status: Status) -> None:
        """Write the remaining metrics and the summary of all rounds, and end the run.

        A run without its last round is KILLED, not FINISHED.
        """
        rounds = self._history.rows
        if status == "FINISHED" and max(rounds, default=0) < self._experiment.federation.rounds:
            status = "KILLED"
        summary = self._history.summary(self._experiment.tracking.targets)
        self._log(int(summary.get("rounds", 0)), summary)
        self._unless_lost(lambda: retry_during_outage(self._store.uri, self._flush))
        self._write(self._client.set_terminated, status)

    def _write(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        def write() -> None:
            call(self.run_id, *arguments, **named)

        self._unless_lost(lambda: retry_during_outage(self._store.uri, write))

    def _unless_lost(self, write: Callable[[], None]) -> None:
        """Write, unless the run was deleted: that sets `lost`, which is raised later, after a checkpoint."""
        if self.lost:
            return
        try:
            write()
        except MlflowException:
            if not self._is_deleted():
                raise
            restore = self._store.command(f"runs restore --run-id {self.run_id}")
            again = "" if self._experiment.checkpoint.every is None else " --resume latest"
            self.lost = RunError(
                f"MLflow run {self.run_id} was deleted while it ran; restore it with `{restore}`, or set "
                f"tracking.enabled=false, and start again{again and f' with{again}'}",
                keys=("tracking.enabled",),
            )

    def _is_deleted(self) -> bool:
        try:
            return self._client.get_run(self.run_id).info.lifecycle_stage == "deleted"
        except MlflowException as error:
            return error.error_code == "RESOURCE_DOES_NOT_EXIST"
