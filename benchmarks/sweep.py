"""Seconds of a sweep beyond the training of its experiments: 12 trials of the quickstart.

A sweep runs the 12 experiments; before it six of them run one after the other, each on all cores as
`rayfl run` would place it, and after it the other six, in one Ray instance. What the sweep takes after one
start-up (from the command to the first round) is compared with the rounds of the experiments alone.

On a machine that others use too, the load changes between the two. So the sweep is also compared with its
own trials' rounds, divided by the trials that run at once (a first round, which may wait for its actors,
counts as much as the mean of the others): what is left over is Tune, MLflow, checkpoints, and changing from
one trial to the next.
"""

import contextlib
import json
import tempfile
import time
from pathlib import Path

from benchmarks.findings import Finding, median
from benchmarks.startup import QUICKSTART
from rayfl.experiment import run
from rayfl.runtime import cluster
from rayfl.tracking.store import TrackingStore
from tuning.callbacks import TrialUpdate
from tuning.config import Sweep, load_sweep
from tuning.space import Point
from tuning.sweep import run as run_sweep

SPACE = {
    "algorithm.rho": {"grid": [0.05, 0.1]},
    "algorithm.alpha": {"grid": [0.1, 0.3, 0.5]},
    "partition.alpha": {"grid": [0.1, 1.0]},
}
ROUNDS = 30
TARGET = 1.25


def measure() -> list[Finding]:
    """Measure one sweep, and the same experiments alone."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        content = {"name": "benchmark", "base": str(QUICKSTART), "space": SPACE}
        Path("benchmark.yaml").write_text(json.dumps(content))
        return _compare(load_sweep("benchmark.yaml", [f"base.federation.rounds={ROUNDS}"]))


def _compare(sweep: Sweep) -> list[Finding]:
    points = list(sweep.search.points(sweep.space) or ())
    half = len(points) // 2
    first: list[float] = []
    at_once: list[int] = []

    def on_update(update: TrialUpdate) -> None:
        if update.rounds and not first:
            first.append(time.monotonic())

    with cluster.connected(None):
        training = _alone(sweep, points[:half])
        began, used = time.monotonic(), time.process_time()
        finished = run_sweep(sweep, lambda start: at_once.append(start.plan.at_once), on_update)
        ended, used = time.monotonic(), time.process_time() - used
        training += _alone(sweep, points[half:])
    assert all(row.state == "finished" for row in finished.rows)
    tracking = sweep.experiment(points[0], 0).tracking
    store = TrackingStore(tracking.uri, tracking.experiment)
    later = sum(
        metric.value
        for row in finished.rows
        for metric in store.client.get_metric_history(row.run_id, "time/round_s")
        if metric.step > 1
    )
    own = later * ROUNDS / (ROUNDS - 1) / at_once[0]
    rest = ended - first[0]
    return [
        median("sweep", "sweep: from the command to the first round", "s", [first[0] - began]),
        median("sweep", f"sweep: the rest, {len(points)} trials", "s", [rest]),
        median("sweep", "sweep over the same experiments alone", "x", [rest / training], TARGET),
        median("sweep", "sweep over its own trials' rounds", "x", [rest / own], TARGET),
        median("sweep", "sweep: overhead a trial", "s", [(rest - own) / len(points)]),
        median("sweep", "sweep: driver's processor time a trial", "s", [used / len(points)]),
    ]


def _alone(sweep: Sweep, points: list[Point]) -> float:
    """Return the seconds of the rounds of these experiments, run one by one on all cores."""
    seconds = 0.0
    for point in points:
        experiment = sweep.experiment(point, 0)
        off = experiment.tracking.model_copy(update={"enabled": False})
        result = run(experiment.model_copy(update={"tracking": off}))
        seconds += float(result.history["time/round_s"].to_numpy().sum())
    return seconds
