"""MLflow tracking store, and the MLflow experiment in it that holds the runs."""

import logging
import shlex
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rayfl.errors import ConfigError, first_line
from rayfl.tracking.defaults import default_uri

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
# It logs a traceback for each failure that rayfl handles.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class TrackingStore:
    """MLflow tracking store with one of its experiments."""

    def __init__(self, uri: str | None, experiment: str):
        """Open the store, and create the experiment if it is new. Raises ConfigError if this fails."""
        self.uri = uri or default_uri()
        self.pictures: dict[str, bytes] = {}
        """Pictures of partitions by digest, which the runs of a sweep share."""
        try:
            self.client = MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(experiment)
            self.experiment_id = (
                found.experiment_id if found else self._create(experiment, local=uri is None)
            )
        except Exception as error:  # MLflow does not wrap the errors of its backends
            raise ConfigError(
                f"MLflow cannot use it ({first_line(error)}); give a "
                "sqlite:/// file or the http address of a running MLflow server, or set "
                "tracking.enabled=false",
                key="tracking.uri",
                value=self.uri,
                keys=("tracking.enabled",),
            ) from error
        if found and found.lifecycle_stage != "active":
            raise ConfigError(
                f"was deleted in {self.uri}; restore it with "
                "`mlflow experiments restore`, or choose another name",
                key="tracking.experiment",
                value=experiment,
            )

    @property
    def ui_command(self) -> str:
        """Command or address that opens MLflow's pages for this store."""
        if self.uri.startswith("http"):
            return self.uri
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

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
