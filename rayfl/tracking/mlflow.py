"""MLflow: one run per experiment, one batch of metrics per finished round.

The store is an absolute sqlite file in the working directory unless the config names another. Metrics
are written as rounds finish (rounds faster than `FLUSH_SECONDS` go together), so a run that is killed
keeps what it had finished.
"""

import importlib.metadata
import io
import json
import logging
import platform
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from rayfl.tracking.defaults import default_uri

# isort: split
# After `rayfl.tracking.defaults`, which says how MLflow is to behave.
import pandas as pd
from mlflow.entities import Dataset as MLflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rayfl.config.schema import LONGEST_RUN_NAME, Experiment
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError, RunError, first_line

FLUSH_SECONDS = 0.25
# How long a run that is done waits for a store that is away, before what was not written is lost.
PATIENCE_SECONDS = 300.0
_LONGEST_PAUSE_SECONDS = 15.0
_METRICS_PER_BATCH = 1000  # MLflow's limit
# What a store answers that is there and does not want this. Anything else may pass: no connection, a
# time-out, a locked sqlite file.
_REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
}

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
# It logs a traceback for each failure that is handled here.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logger = logging.getLogger(__name__)


class OutageError(RunError):
    """The tracking store was away for too long."""


def is_outage(error: Exception) -> bool:
    """Whether an error of MLflow may pass by itself."""
    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    return isinstance(error, OSError)  # of its http library too


class TrackingStore:
    """An MLflow tracking store and the experiment in it."""

    def __init__(self, uri: str | None, experiment: str):
        """Open the store, creating the experiment if need be; ConfigError if that cannot be done."""
        self.uri = uri or default_uri()
        self.pictures: dict[str, bytes] = {}
        """Of partitions, by digest: the runs of a sweep share them."""
        try:
            self.client = MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(experiment)
            self.experiment_id = (
                found.experiment_id if found else self._create(experiment, local=uri is None)
            )
        except Exception as error:  # MLflow lets through whatever its backend raises
            raise ConfigError(
                f"tracking.uri = {self.uri!r}: MLflow cannot use it ({first_line(error)}); give a "
                "sqlite:/// file or the http address of a running MLflow server, or set "
                "tracking.enabled=false"
            ) from error
        if found and found.lifecycle_stage != "active":
            raise ConfigError(
                f"tracking.experiment = {experiment!r}: was deleted in {self.uri}; restore it with "
                "`mlflow experiments restore`, or choose another name"
            )

    @property
    def ui_command(self) -> str:
        """What opens MLflow's pages for this store."""
        if self.uri.startswith("http"):
            return self.uri
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

    def _create(self, experiment: str, local: bool) -> str:
        location = (Path.cwd() / "mlruns").as_uri() if local else None
        try:
            return self.client.create_experiment(experiment, artifact_location=location)
        except MlflowException as error:
            found = self.client.get_experiment_by_name(experiment)
            if error.error_code == "RESOURCE_ALREADY_EXISTS" and found:  # another run was first
                return found.experiment_id
            raise


class RunTracker:
    """One MLflow run."""

    def __init__(
        self,
        store: TrackingStore,
        experiment: Experiment,
        dataset: str,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ):
        """Start a run, with `tags` beside its own, or go on with the run `run_id`.

        ConfigError if the store has no such run.
        """
        self._client, self._experiment, self._store = store.client, experiment, store
        self._pending: list[Metric] = []
        self._flushed = 0.0
        self._pause = 0.0
        """Seconds before the next attempt, while the store is away."""
        self._recorded: dict[str, set[int]] = {}
        """Steps by metric that the run had when it was gone on with."""
        self.run_id: str = (
            self._go_on(store, run_id) if run_id else self._start(store, dataset, tags or {})
        )

    def _start(self, store: TrackingStore, dataset: str, tags: Mapping[str, str]) -> str:
        experiment = self._experiment
        name = experiment.tracking.run_name or (
            f"{experiment.algorithm_name}-{dataset}-seed{experiment.seed}"
        )
        run = self._client.create_run(
            store.experiment_id,
            run_name=name[:LONGEST_RUN_NAME],
            tags=_tags(experiment) | dict(tags),
        )
        return run.info.run_id

    def _go_on(self, store: TrackingStore, run_id: str) -> str:
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            raise ConfigError(
                f"--resume: MLflow run {run_id}, to which the checkpoint belongs, is not in {store.uri} "
                f"({first_line(error)}); set tracking.uri to its store, or tracking.enabled=false"
            ) from error
        self._client.update_run(run_id, status="RUNNING")
        self._recorded = {
            key: {metric.step for metric in self._client.get_metric_history(run_id, key)}
            for key in run.data.metrics
        }
        return run_id

    def describe_config(self) -> None:
        """Record the resolved config."""
        flat = self._experiment.flat()
        params = [Param(key, _canonical(value)) for key, value in flat.items()]
        for i in range(0, len(params), 100):  # MLflow's limit
            self._write(self._client.log_batch, params=params[i : i + 100])
        self.attach("config.yaml", self._experiment.to_yaml())

    def attach(self, name: str, text: str) -> None:
        """Record a text file."""
        self._write(self._client.log_text, text, name)

    def describe_actors(self, actors: list[dict[str, Any]]) -> None:
        """Record where the client actors run, which engine they chose and what they compute in."""
        self.tag("rayfl.device", actors[0]["device"])
        self.tag("rayfl.engine", actors[0]["engine"])
        self.tag("rayfl.precision", actors[0]["precision"])
        self._write(self._client.log_dict, {"client actors": actors}, "actors.json")

    def describe_data(self, data: Dataset, partition: Partition) -> None:
        """Record the dataset with the partition's digest, its histogram and its picture."""
        from rayfl.data.picture import heatmap  # matplotlib: not before the actors are on their way

        histogram = partition.histogram(data.y_train, data.num_classes)
        profile = {"clients": len(histogram), "samples": len(data.y_train)}
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
        rows = {"classes": data.classes, "clients": histogram.tolist()}
        self._write(self._client.log_dict, rows, "partition/histogram.json")
        pictures = self._store.pictures
        if entry.digest not in pictures:
            content = io.BytesIO()
            heatmap(histogram, data.classes, content)
            pictures[entry.digest] = content.getvalue()
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "histogram.png"
            picture.write_bytes(pictures[entry.digest])
            self._write(self._client.log_artifact, str(picture), "partition")

    def describe_clients(self, clients: pd.DataFrame) -> None:
        """Record each client's accuracy at the end."""
        self.attach("evaluation/clients.csv", clients.to_csv())

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        """Record a round's metrics, now or with those of the rounds right after it.

        What a run that was gone on with has already is not recorded twice.
        """
        now = int(time.time() * 1000)
        self._pending += [
            Metric(key, value, now, round)
            for key, value in metrics.items()
            if round not in self._recorded.get(key, ())
        ]
        if time.monotonic() - self._flushed >= FLUSH_SECONDS + self._pause:
            self.flush()

    def flush(self) -> None:
        """Write what was logged; if the store is away, some later call does."""
        try:
            self._flush()
        except Exception as error:
            if not is_outage(error):
                raise
            self._pause = min(2 * self._pause or 1.0, _LONGEST_PAUSE_SECONDS)
            self._flushed = time.monotonic()
            logger.warning("MLflow is away; the metrics wait (%s)", first_line(error))

    def _flush(self) -> None:
        while self._pending:
            # Forgotten once it is written, not before: an interrupt may come in between, and writing a
            # metric twice changes nothing.
            self._client.log_batch(self.run_id, metrics=self._pending[:_METRICS_PER_BATCH])
            self._pending = self._pending[_METRICS_PER_BATCH:]
        self._flushed, self._pause = time.monotonic(), 0.0

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self._write(self._client.set_tag, key, value)

    def finish(
        self, status: Literal["FINISHED", "FAILED", "KILLED"], summary: Mapping[str, float]
    ) -> None:
        """Write what is left and the summary, and end the run."""
        self.log(int(summary.get("rounds", 0)), summary)
        retry_during_outage(self._store.uri, self._flush)
        self._write(self._client.set_terminated, status)

    def _write(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        retry_during_outage(self._store.uri, lambda: call(self.run_id, *arguments, **named))


def retry_during_outage(uri: str, call: Callable[[], Any]) -> Any:
    """What `call` returns, once the store is there. OutageError if it stays away for minutes."""
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            return call()
        except Exception as error:
            if not is_outage(error):
                raise
            away = time.monotonic() - began
            if away > PATIENCE_SECONDS:
                raise OutageError(
                    f"tracking.uri = {uri!r}: MLflow has been away for {away:.0f} s ({first_line(error)}), "
                    "and has not got all of the run; start its server, and go on from the last "
                    "checkpoint"
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _tags(experiment: Experiment) -> dict[str, str]:
    versions = {
        f"version.{package}": importlib.metadata.version(package)
        for package in ("rayfl", "ray", "torch", "numpy", "mlflow")
    }
    commit = _git_commit()
    return {
        "rayfl.algorithm": experiment.algorithm_name,
        "rayfl.seed": str(experiment.seed),
        "rayfl.config_hash": experiment.hash,
        "rayfl.kind": "experiment",
        "version.python": platform.python_version(),
        **versions,
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }


def _git_commit() -> str | None:
    """The commit of the working directory, where the user's own methods are."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _canonical(value: Any) -> str:
    """One spelling of each value, so that queries can compare params as text."""
    return value if isinstance(value, str) else json.dumps(value)
