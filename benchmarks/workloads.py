"""Federated trainings that the benchmarks measure, and their data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayfl.config.schema import Experiment, load_config

SCRATCH = Path("/tmp/rayfl-benchmarks")
"""Folder of the random data between runs."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Federated training without its algorithm."""

    title: str
    rounds: int
    """Number of rounds, enough for a median."""
    config: dict[str, Any]
    target: float
    """Limit of the seconds per round, relative to the bare loop."""
    overhead_target_ms: float
    """Limit of a round's time beside training."""
    rounding: float = 1e-3
    """Limit of the distance between both sides after one round, relative to the movement of w."""
    compared_steps: int | None = None
    """Local steps of the compared round; None: all of them."""

    def experiment(self, algorithm: Mapping[str, Any], **federation: Any) -> Experiment:
        """Return the workload with this algorithm; `federation` has the options that differ."""
        return load_config(
            {
                "partition": {"name": "dirichlet", "alpha": 0.1},
                "tracking": {"enabled": False},
                "checkpoint": {"every": None},
                **self.config,
                "algorithm": dict(algorithm),
                "federation": {"rounds": self.rounds, **self.config["federation"], **federation},
            }
        )


def workloads(cifar10: Path | None) -> dict[str, Workload]:
    """Return the workloads by name. Random images of the same shape replace a missing CIFAR-10."""
    images = (
        {"name": "parquet", "path": str(cifar10)}
        if cifar10 is not None
        else random_data("images", 50_000, (32, 32, 3), np.uint8)
    )
    hundred = {"clients": 100, "batch_size": 50, "lr": 0.05}
    thousand = {"clients": 1000, "cohort": 100, "local_steps": 5, "batch_size": 10, "lr": 0.05}
    return {
        "lenet5": Workload(
            title="LeNet-5, CIFAR-10, 10 of 100 clients x 10 steps x 50",
            rounds=10,
            config={
                "data": images,
                "model": {"name": "lenet5"},
                "federation": hundred | {"cohort": 10, "local_steps": 10},
            },
            target=0.80,
            overhead_target_ms=8,
        ),
        "resnet18": Workload(
            title="ResNet-18-GN, torchvision stem, CIFAR-10, 4 of 100 clients x 5 steps x 50",
            rounds=6,
            config={
                "data": images,
                "model": {"name": "resnet18"},
                "federation": hundred | {"cohort": 4, "local_steps": 5, "lr": 0.02},
            },
            target=0.60,
            overhead_target_ms=60,
            # Now and then rounding turns the sign in front of a ReLU, which moves a client's gradient by up
            # to 4e-3, and each further step by five times as much; in float64 they are 4e-16 apart.
            rounding=5e-3,
            compared_steps=1,
        ),
        "mlp": Workload(
            title="MLP 784-200-200-10, 100 of 1,000 clients x 5 steps x 10",
            rounds=100,
            config={
                "data": random_data("features784", 50_000, (784,), np.float32),
                "model": {"name": "mlp", "hidden": [200, 200]},
                "federation": thousand,
            },
            target=0.55,
            overhead_target_ms=8,
        ),
        "mlp_small": Workload(
            title="MLP 64-64-10, 100 of 1,000 clients x 5 steps x 10",
            rounds=200,
            config={
                "data": random_data("features64", 50_000, (64,), np.float32),
                "model": {"name": "mlp", "hidden": [64]},
                "federation": thousand,
            },
            target=0.16,
            overhead_target_ms=8,
        ),
    }


def random_data(name: str, samples: int, shape: tuple[int, ...], kind: type) -> dict[str, Any]:
    """Return the config of random samples, with ten labels that depend on them."""
    path = SCRATCH / f"{name}-{samples}.npz"
    if not path.exists():
        SCRATCH.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        size = (samples, *shape)
        if kind is np.uint8:
            x = rng.integers(0, 256, size, dtype=np.uint8)
        else:
            x = rng.standard_normal(size, dtype=np.float32)
        seen = x.reshape(samples, -1)[:, :64].astype(np.float32)
        y = (seen @ rng.standard_normal((seen.shape[1], 10))).argmax(1)
        test = 400
        np.savez(path, x_train=x, y_train=y, x_test=x[:test], y_test=y[:test])
    return {"name": "npz", "path": str(path)}
