"""MLflow tracking store, and the MLflow experiment in it that holds the runs."""

import contextlib
import logging
import os
import shlex
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rayfl.errors import ConfigError, Refuse, first_line
from rayfl.text import redacted
from rayfl.tracking import sqlite
from rayfl.tracking.defaults import database_file, store_address

# Bars for files of some kilobytes.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
# It logs a traceback for each failure that rayfl handles.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

_NOTICE_SECONDS = 5.0
_LOCAL_SERVER = "http://127.0.0.1:5000"  # of `mlflow ui`
# The kind by which MLflow 3 chooses an experiment's page; without one it opens on traces of language models.
_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"
_INFERRED = ("_inferred", "no_inferred_type")  # kinds that the page guessed and nobody chose


class TrackingStore:
    """MLflow tracking store with one of its experiments."""

    def __init__(self, uri: str | None, experiment: str):
        """Open the store, and create the experiment if it is new. Raises ConfigError if this fails."""
        self.uri, key = store_address(uri, "tracking.uri")
        self.address = redacted(self.uri)
        """The same for people, without a password."""
        self.pictures: dict[str, bytes] = {}
        """Pictures of partitions by digest, which the runs of a sweep share."""
        is_default = not uri and key == "tracking.uri"
        refuse = partial(ConfigError, key=key, value=self.address, keys=("tracking.enabled",))
        either = ", or set tracking.enabled=false"
        with opened(self.uri, refuse, either, writes=True) as self.client:
            found = self.client.get_experiment_by_name(experiment)
            self.experiment_id = (
                found.experiment_id if found else self._create(experiment, local=is_default)
            )
        if found and found.lifecycle_stage != "active":
            raise ConfigError(
                f"was deleted in {self.address}; restore it with "
                f"`{self.command(f'experiments restore -x {found.experiment_id}')}`, or choose another name",
                key="tracking.experiment",
                value=experiment,
            )
        if not found or found.tags.get(_KIND, "no_inferred_type").endswith(_INFERRED):
            # The tag only chooses MLflow's page: no run ends where a server refuses it or is away.
            with contextlib.suppress(MlflowException):
                self.client.set_experiment_tag(self.experiment_id, _KIND, _TRAINING)

    @property
    def ui_command(self) -> str:
        """Command or address that opens MLflow's pages for this store."""
        if self.uri.startswith("http"):
            return self.address
        return f"mlflow ui --backend-store-uri {shlex.quote(self.address)}"

    def page(self, run_id: str) -> str:
        """Address of a run's page; on this machine once `ui_command` runs.

        MLflow's pages are those for language models unless the address, or the browser's last visit, says
        otherwise.
        """
        server = self.address.rstrip("/") if self.uri.startswith("http") else _LOCAL_SERVER
        run = f"experiments/{self.experiment_id}/runs/{run_id}"
        return f"{server}/#/{run}?workflowType=machine_learning"

    def command(self, words: str) -> str:
        """The command `mlflow WORDS` on this store."""
        return f"MLFLOW_TRACKING_URI={shlex.quote(self.address)} mlflow {words}"

    def _create(self, experiment: str, local: bool) -> str:
        location = (Path.cwd() / "mlruns").as_uri() if local else None
        try:
            return self.client.create_experiment(experiment, artifact_location=location)
        except MlflowException as error:
            found = self.client.get_experiment_by_name(experiment)
            if (
                error.error_code == "RESOURCE_ALREADY_EXISTS" and found
            ):  # another process created it
                return found.experiment_id
            raise


@contextlib.contextmanager
def opened(uri: str, refuse: Refuse, either: str, writes: bool) -> Iterator[MlflowClient]:
    """Open the store; in this context no other process of rayfl opens it, where it is a file.

    A sqlite file that is not there is made, and one of an older MLflow is migrated. `writes`: it must be
    possible to write to it. If MLflow cannot use the store, or the context raises, raises `refuse(message)`,
    whose message ends with `either`.
    """
    file = database_file(uri)
    try:
        if file is None:
            with _noticed(f"waiting for the MLflow store at {redacted(uri)}"):
                yield _client(uri)
            return
        file = Path(os.path.realpath(file))
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
        with sqlite.locked(file) as is_locked:
            sqlite.ensure(file, is_locked, writes)
            try:
                client = _client(uri)
            except Exception:
                if not sqlite.remake(file):
                    raise
                client = _client(uri)
            yield client
    except sqlite.StoreFileError as error:
        raise refuse(f"{error}{either}") from error
    except Exception as error:  # MLflow does not wrap the errors of its backends
        raise refuse(
            f"MLflow cannot use it ({_why(error)}); {_advice(uri, error)}{either}"
        ) from error


def _client(uri: str) -> MlflowClient:
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)  # connects, and makes or migrates the tables
    return client


def _why(error: Exception) -> str:
    """The first sentence of MLflow's error."""
    return redacted(first_line(error).split(". ")[0])


def _advice(uri: str, error: Exception) -> str:
    address = shlex.quote(redacted(uri))
    if database_file(uri) is not None:
        if "mlflow db upgrade" in str(error):
            return f"copy the file, and bring it up to date with `mlflow db upgrade {address}`"
        if "locked" in str(error):
            return "another program is at work on it: try again once it is done"
        return (
            "its tables are not those of any MLflow, as after a migration that was cut off: put a copy from "
            "before in its place, or move the file away and a new one is made"
        )
    if uri.startswith("file:") or "://" not in uri:
        source = shlex.quote(uri.removeprefix("file://"))
        return (
            f"give a sqlite:/// file; `mlflow migrate-filestore --source {source} --target "
            "sqlite:///mlflow.db` brings the runs there"
        )
    return "give a sqlite:/// file or the http address of a running MLflow server"


@contextlib.contextmanager
def _noticed(text: str) -> Iterator[None]:
    """Say so if the context takes some seconds."""
    timer = threading.Timer(_NOTICE_SECONDS, logging.getLogger(__name__).warning, ["%s", text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
