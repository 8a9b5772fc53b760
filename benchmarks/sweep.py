"""Seconds of a sweep beyond the training of its experiments.

    python benchmarks/sweep.py                   12 trials of the quickstart, 30 rounds each
    python benchmarks/sweep.py --rounds 100 --json out.json

A sweep runs the 12 experiments; before it six of them run one after the other, each on all cores as
`rayfl run` would place it, and after it the other six, in one Ray instance. `ratio` compares what the sweep
takes after one start-up (from the command to the first round) with the rounds of the experiments alone.

On a machine that others use too, the load changes between the two. `own_ratio` and the overhead compare the
sweep with the seconds of its own trials' rounds, divided by the trials that run at once (a first round, which
may wait for its actors, counts as much as the mean of the others): what is left over is Tune, MLflow,
checkpoints, and changing from one trial to the next. `driver_cpu_per_trial_s` is what the driver computes.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console

from rayfl.experiment import run
from rayfl.runtime import cluster
from rayfl.store import default_uri

# isort: split
# After `rayfl.store`, which says how MLflow is to behave.
from mlflow.tracking import MlflowClient

from tuning.config import Sweep, load_sweep
from tuning.plan import Trial
from tuning.space import Point
from tuning.sweep import run as run_sweep

QUICKSTART = Path(__file__).parent.parent / "configs/quickstart.yaml"
SPACE = {
    "algorithm.rho": {"grid": [0.05, 0.1]},
    "algorithm.alpha": {"grid": [0.1, 0.3, 0.5]},
    "partition.alpha": {"grid": [0.1, 1.0]},
}


def measure(rounds: int) -> dict[str, float]:
    """Both sides, in an empty working directory."""
    content = {"name": "benchmark", "base": str(QUICKSTART), "space": SPACE}
    Path("benchmark.yaml").write_text(json.dumps(content))
    sweep = load_sweep("benchmark.yaml", [f"base.federation.rounds={rounds}"])
    points = list(sweep.search.points(sweep.space) or ())
    half = len(points) // 2
    with cluster.connected(None):
        training = _alone(sweep, points[:half])
        first: list[float] = []
        at_once: list[int] = []

        def watch(trial: Trial, state: str, done: int, value: float | None, reason: str) -> None:
            if done and not first:
                first.append(time.monotonic())

        began, used = time.monotonic(), time.process_time()
        finished = run_sweep(sweep, lambda start: at_once.append(start.plan.at_once), watch)
        ended, used = time.monotonic(), time.process_time() - used
        training += _alone(sweep, points[half:])
    assert all(row.state == "finished" for row in finished.rows)
    client = MlflowClient(default_uri())
    later = sum(
        metric.value
        for row in finished.rows
        for metric in client.get_metric_history(row.run_id, "time/round_s")
        if metric.step > 1
    )
    own = later * rounds / (rounds - 1)
    start_up, rest = first[0] - began, ended - first[0]
    return {
        "trials": len(points),
        "training_s": training,
        "sweep_s": rest,
        "start_up_s": start_up,
        "ratio": rest / training,
        "own_rounds_s": own / at_once[0],
        "own_ratio": rest / (own / at_once[0]),
        "overhead_per_trial_s": (rest - own / at_once[0]) / len(points),
        "driver_cpu_per_trial_s": used / len(points),
    }


def _alone(sweep: Sweep, points: list[Point]) -> float:
    """Seconds of the rounds of these experiments, one after the other, each on all cores."""
    seconds = 0.0
    for point in points:
        experiment = sweep.experiment(point, 0)
        off = experiment.tracking.model_copy(update={"enabled": False})
        result = run(experiment.model_copy(update={"tracking": off}))
        seconds += float(result.history["time/round_s"].to_numpy().sum())
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    path = arguments.json.absolute() if arguments.json else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        numbers = measure(arguments.rounds)
        os.chdir("/")
    for name, value in numbers.items():
        Console().print(f"{name:<22} {value:.3f}")
    if path:
        path.write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
