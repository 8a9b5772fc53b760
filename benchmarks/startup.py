"""Seconds from a command to its result, each in fresh processes.

`rayfl run`: from the command to the moment when the first round has come in, which MLflow's record of the
run tells. The others: until the process has ended; `import rayfl` is what the import itself takes.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.findings import Finding, median

QUICKSTART = Path(__file__).parent.parent / "configs/quickstart.yaml"
RAYFL = Path(sys.executable).parent / "rayfl"
IMPORT = (
    "import time; began = time.perf_counter(); import rayfl; print(time.perf_counter() - began)"
)


def measure(repeats: int) -> list[Finding]:
    """Measure each of them `repeats` times, in turn."""
    first, imports, helps = [], [], []
    for _ in range(repeats):
        first.append(_first_round())
        imports.append(float(_output([sys.executable, "-c", IMPORT])))
        began = time.perf_counter()
        _output([str(RAYFL), "--help"])
        helps.append(time.perf_counter() - began)
    return [
        median("startup", "rayfl run configs/quickstart.yaml, to the first round", "s", first, 8.0),
        median("startup", "import rayfl", "s", imports, 0.3),
        median("startup", "rayfl --help", "s", helps, 0.5),
    ]


def _first_round() -> float:
    # Here, for it takes seconds and starts threads, and the bare loop is forked from this process.
    from rayfl.tracking.store import TrackingStore

    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        options = ["federation.rounds=5", "checkpoint.every=null"]
        _output([str(RAYFL), "run", str(QUICKSTART), *options], folder)
        store = TrackingStore(f"sqlite:///{folder}/mlflow.db", "rayfl")
        client = store.client
        (run,) = client.search_runs([store.experiment_id])
        loss = client.get_metric_history(run.info.run_id, "train/loss")
        came = min(metric.timestamp for metric in loss if metric.step == 1)
    return came / 1000 - began


def _output(command: list[str], folder: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout
