"""What MLflow costs a round of `configs/cifar10_lenet5.yaml`.

    python benchmarks/tracking.py                      10 rounds twice each way, with random images
    python benchmarks/tracking.py --cifar10 DIR --json out.json

Runs with tracking and without it take turns. The server goes on with the next round while the driver
writes the last one, so there are two numbers: `cpu_share`, the seconds that the driver computes more with
tracking than without, as a share of a round, and `ratio`, how much longer a round is with tracking, which
is what matters but says little on a machine that others use too.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from rayfl.config import Experiment, load_config
from rayfl.experiment import run
from rayfl.runtime import cluster
from rayfl.runtime.server import Record

CONFIG = Path(__file__).parent.parent / "configs/cifar10_lenet5.yaml"
WARM_UP = 2


class Costs(NamedTuple):
    """Of rounds after the warm-up."""

    rounds: list[float]
    """Seconds of each."""
    driver_cpu: float
    """Seconds that the driver computed, a round."""


def costs(experiment: Experiment) -> Costs:
    """Run the experiment."""
    used: dict[int, float] = {}

    def note(record: Record) -> None:
        used.setdefault(record.round, time.process_time())

    history = run(experiment, on_record=note).history
    last = experiment.federation.rounds
    # When round r is noted, rounds up to r - 1 are written, or up to r: the same at both ends.
    driver = (used[last] - used[WARM_UP]) / (last - WARM_UP)
    return Costs(history["time/round_s"].tolist()[WARM_UP:], driver)


def measure(cifar10: Path | None, rounds: int, repeats: int) -> dict[str, float]:
    """Both ways in turns, in an empty working directory."""
    data = {"name": "parquet", "path": str(cifar10)} if cifar10 else _random_images()
    Path("experiment.yaml").write_text(json.dumps({"extends": str(CONFIG), "data": data}))
    overrides = [f"federation.rounds={rounds + WARM_UP}", "data.augment=flip_crop"]
    tracked = load_config("experiment.yaml", overrides)
    plain = load_config("experiment.yaml", [*overrides, "tracking.enabled=false"])
    pairs: list[tuple[Costs, Costs]] = []
    with cluster.connected(None):
        for _ in range(repeats):
            pairs.append((costs(plain), costs(tracked)))
    without, with_it = (
        statistics.median(s for pair in pairs for s in pair[i].rounds) for i in (0, 1)
    )
    cpu_without, cpu_with = (statistics.fmean(pair[i].driver_cpu for pair in pairs) for i in (0, 1))
    return {
        "round_s": without,
        "tracked_round_s": with_it,
        "ratio": with_it / without,
        "driver_cpu_s": cpu_without,
        "tracked_driver_cpu_s": cpu_with,
        "cpu_share": (cpu_with - cpu_without) / without,
    }


def _random_images() -> dict[str, str]:
    """Of CIFAR-10's shape."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 50_000), ("test", 10_000)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 10, n)
    np.savez("images.npz", **arrays)
    return {"name": "npz", "path": str(Path("images.npz").absolute())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cifar10", type=Path, help="directory of CIFAR-10 as parquet files")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    path = arguments.json.absolute() if arguments.json else None
    cifar10 = arguments.cifar10.absolute() if arguments.cifar10 else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        numbers = measure(cifar10, arguments.rounds, arguments.repeats)
        os.chdir("/")
    for name, value in numbers.items():
        Console().print(f"{name:<22} {value:.4f}")
    if path:
        path.write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
