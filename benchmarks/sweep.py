"""Seconds of a sweep beyond the training of its experiments.

    python benchmarks/sweep.py                   12 trials of the quickstart, 30 rounds each
    python benchmarks/sweep.py --rounds 100 --json out.json

The 12 experiments run one after the other first, each on all cores as `rayfl run` would place it, in one
Ray instance; their training time is the sum of their rounds' seconds. Then a sweep runs the same 12. What
it takes over the training, after one start-up (from the command to the first round), is its overhead.
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
from tuning.config import load_sweep
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
    with cluster.connected(None):
        training = 0.0
        for point in points:
            experiment = sweep.experiment(point, 0)
            off = experiment.tracking.model_copy(update={"enabled": False})
            result = run(experiment.model_copy(update={"tracking": off}))
            training += float(result.history["time/round_s"].to_numpy().sum())
        first: list[float] = []

        def watch(hash: str, state: str, done: int, value: float | None, reason: str) -> None:
            if done and not first:
                first.append(time.monotonic())

        began = time.monotonic()
        finished = run_sweep(sweep, watch=watch)
        ended = time.monotonic()
    assert all(row.state == "finished" for row in finished.rows)
    start_up, rest = first[0] - began, ended - first[0]
    return {
        "trials": len(points),
        "training_s": training,
        "sweep_s": rest,
        "start_up_s": start_up,
        "ratio": rest / training,
        "overhead_per_trial_s": (rest - training) / len(points),
    }


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
