"""What MLflow costs a round of LeNet-5 on images of CIFAR-10's shape.

    python benchmarks/tracking.py                10 rounds, with random images
    python benchmarks/tracking.py --cifar10 DIR  with CIFAR-10 as parquet files

The driver writes a round's metrics while the actors train the next round. So there are two numbers: the
seconds that the driver spends in `Tracker.log`, as a share of a round, and how much longer rounds take with
tracking than without, the two taking turns (the latter is what matters, and noisier).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

from rich.console import Console
from rounds import workloads

from rayfl.config import Experiment, load_config
from rayfl.experiment import run
from rayfl.runtime import cluster
from rayfl.tracking import Tracker

WARM_UP = 2


def seconds_of(experiment: Experiment) -> tuple[list[float], list[float]]:
    """Of each round, and of each call of `Tracker.log` (none without tracking)."""
    calls: list[float] = []
    log = Tracker.log

    def timed(self: Tracker, round: int, metrics: dict[str, float]) -> None:
        began = time.perf_counter()
        log(self, round, metrics)
        calls.append(time.perf_counter() - began)

    with mock.patch.object(Tracker, "log", timed):
        result = run(experiment)
    return result.history["time/round_s"].tolist()[WARM_UP:], calls


def measure(cifar10: Path | None, rounds: int, repeats: int) -> dict[str, float]:
    """Both sides in turns, in an empty working directory."""
    workload = workloads(cifar10, Path.cwd())["lenet5"].config
    federation = workload["federation"] | {"rounds": rounds + WARM_UP}
    experiment = load_config(
        workload | {"federation": federation, "resources": {"num_actors": 2}},
        ["algorithm.name=fedwmsam", "checkpoint.every=null"],
    )
    off = load_config(experiment.model_dump(mode="json"), ["tracking.enabled=false"])
    tracked: list[float] = []
    plain: list[float] = []
    ratios: list[float] = []
    shares: list[float] = []
    with cluster.connected(None):
        for _ in range(repeats):
            without, _ = seconds_of(off)
            seconds, calls = seconds_of(experiment)
            plain += without
            tracked += seconds
            ratios.append(statistics.median(seconds) / statistics.median(without))
            shares.append(sum(calls) / len(seconds) / statistics.median(seconds))
    return {
        "plain_round_s": statistics.median(plain),
        "tracked_round_s": statistics.median(tracked),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "log_share": statistics.median(shares),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    path = arguments.json.absolute() if arguments.json else None
    cifar10 = arguments.cifar10.absolute() if arguments.cifar10 else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        numbers = measure(cifar10, arguments.rounds, arguments.repeats)
        os.chdir("/")
    for name, value in numbers.items():
        Console().print(f"{name:<16} {value:.4f}")
    if path:
        path.write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
