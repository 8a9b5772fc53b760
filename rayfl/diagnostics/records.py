"""Measurements in MLflow: each is made once, and read from there when it is asked for again."""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayfl.analysis.measured import FOLDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient

_METRICS_PER_BATCH = 1000  # MLflow's limit


@dataclass(frozen=True)
class Records:
    """The measurements of one MLflow run."""

    client: "MlflowClient"
    run_id: str
    artifacts: str
    """URI of the run's artifacts."""

    def read(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The measurements for this key, if there are any."""
        from mlflow.artifacts import load_dict
        from mlflow.exceptions import MlflowException

        try:
            record = load_dict(f"{self.artifacts}/{_name(key)}")
        except (MlflowException, OSError):
            return None
        return record if record.get("key") == key else None

    def write(self, key: dict[str, Any], record: dict[str, Any]) -> None:
        """Keep a measurement, and its metrics as those of its round."""
        from mlflow.entities import Metric

        now, round = int(time.time() * 1000), key["round"]
        named = record["metrics"].items()
        if "average" in key:  # beside those of the round's own w
            place = f"flatness/average/last{key['average']}/"
            named = [(k.replace("flatness/", place, 1), v) for k, v in named]
        metrics = [Metric(name, v, now, round) for name, v in named]
        for first in range(0, len(metrics), _METRICS_PER_BATCH):
            part = metrics[first : first + _METRICS_PER_BATCH]
            self.client.log_batch(self.run_id, metrics=part)
        self.client.log_dict(self.run_id, {"key": key, **record}, _name(key))

    def draw(self, figures: "dict[str, Figure]", average: int = 1) -> None:
        """Keep pictures; of a mean of the last checkpoints beside those of the last one."""
        of = f"-last{average}" if average > 1 else ""
        for name, figure in figures.items():
            self.client.log_figure(self.run_id, figure, f"{FOLDER}/{name}{of}.png")


def _name(key: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    return f"{FOLDER}/round-{key['round']:08d}-{key['measure']}-{key['split']}-{digest}.json"
