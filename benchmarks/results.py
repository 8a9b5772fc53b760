"""Time of `rayfl results` on a store of 100 finished trials of 200 rounds and 15 metrics.

python benchmarks/results.py            # makes the store (some minutes), then times the command
python benchmarks/results.py STORE.db   # the same, in this file; one that is there is used again
"""

import itertools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# isort: split
import numpy as np
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

RHOS, ALPHAS, SEEDS = (0.01, 0.05, 0.1, 0.2), (0.1, 0.3, 0.5, 1.0, 10.0), range(5)
ROUNDS, METRICS = 200, 15
REPEATS = 5
COMMANDS = {
    "results": ["results"],
    "results, bytes_to_0.7": ["results", "--metric", "bytes_to_0.7"],
    "plot curves": ["plot", "curves", "-o", "curves.png"],
    "report": ["report"],
}
_BATCH = 1000  # MLflow's limit


def make(uri: str) -> None:
    """Fill the store with trials whose curves resemble those of experiments."""
    client = MlflowClient(uri)
    experiment = client.create_experiment("rayfl")
    for trial, (rho, alpha, seed) in enumerate(itertools.product(RHOS, ALPHAS, SEEDS)):
        config = {"algorithm.name": "fedwmsam", "algorithm.rho": rho, "partition.alpha": alpha}
        config |= {"seed": seed} | {f"federation.option{i}": i for i in range(40)}
        tags = {"rayfl.config_hash": f"{trial:016x}", "rayfl.seed": str(seed)}
        run_id = client.create_run(experiment, tags=tags).info.run_id
        client.log_batch(run_id, params=[Param(k, str(v)) for k, v in config.items()])
        rounds = history(rho, alpha, np.random.default_rng(trial))
        now = int(time.time() * 1000)
        points = [
            Metric(name, float(values[r]), now, r + 1)
            for name, values in rounds.items()
            for r in range(ROUNDS)
        ]
        accuracy = rounds["test/accuracy"]
        summary = {
            "accuracy_final": accuracy[-1],
            "accuracy_best": accuracy.max(),
            "accuracy_last10": accuracy[-10:].mean(),
            "loss_final": 1.0,
            "rounds": ROUNDS,
            "seconds_per_round": 0.5,
            "bytes_up": rounds["cost/bytes_up"].sum(),
            "bytes_down": rounds["cost/bytes_down"].sum(),
        }
        points += [Metric(name, float(value), now, ROUNDS) for name, value in summary.items()]
        for i in range(0, len(points), _BATCH):
            client.log_batch(run_id, metrics=points[i : i + _BATCH])
        client.set_terminated(run_id)


def history(rho: float, alpha: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return 15 metrics by round."""
    r = np.arange(1, ROUNDS + 1)
    top = 0.9 - abs(rho - 0.1) - 0.05 / alpha**0.5
    rounds = {
        "test/accuracy": top * (1 - np.exp(-r / 30)) + rng.normal(0, 0.01, ROUNDS),
        "cost/bytes_up": np.full(ROUNDS, 1e6),
        "cost/bytes_down": np.full(ROUNDS, 2e6),
        "time/round_s": rng.uniform(0.4, 0.6, ROUNDS),
        "server/alpha": 0.1 + 0.8 * np.exp(-r / 50),
    }
    return rounds | {f"train/metric{i}": rng.normal(size=ROUNDS) for i in range(METRICS - 5)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1] if len(sys.argv) > 1 else f"{folder}/mlflow.db").absolute()
        uri = f"sqlite:///{path}"
        if not path.exists():
            began = time.perf_counter()
            make(uri)
            print(f"made {path} in {time.perf_counter() - began:.0f} s", flush=True)
        command = Path(sys.executable).parent / "rayfl"
        for label, arguments in COMMANDS.items():
            seconds, used = [], _cpu_seconds()
            for _ in range(REPEATS):
                began = time.perf_counter()
                subprocess.run(
                    [command, *arguments, "--uri", uri], cwd=folder, check=True, capture_output=True
                )
                seconds.append(time.perf_counter() - began)
            listed = ", ".join(f"{s:.2f}" for s in seconds)
            cpu = (_cpu_seconds() - used) / REPEATS
            print(
                f"{label:25} median {np.median(seconds):.2f} s  ({listed}), {cpu:.2f} s CPU",
                flush=True,
            )


def _cpu_seconds() -> float:
    """Return the processor time of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
