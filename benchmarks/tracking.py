"""Cost of MLflow in a round of `configs/cifar10_lenet5.yaml`.

Runs with tracking and without it take turns. The server goes on with the next round while the driver
writes the last one, so there are two numbers: the seconds that the driver computes more with tracking than
without, as a share of a round, and how much longer a round is with tracking, which is what matters but says
little on a machine that others use too.
"""

import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.findings import Finding, median
from rayfl.config.schema import Experiment, load_config
from rayfl.experiment import run
from rayfl.federation.metrics import Metrics
from rayfl.runtime import cluster

CONFIG = Path(__file__).parent.parent / "configs/cifar10_lenet5.yaml"
WARM_UP, ROUNDS = 2, 8
TARGET = 2.0  # percent


class Costs(NamedTuple):
    """Time of a round after the warm-up."""

    seconds: float
    """Median time."""
    driver: float
    """Processor time of the driver in seconds."""


def measure(data: dict[str, Any], repeats: int) -> list[Finding]:
    """Measure with and without MLflow in turn, with these data."""
    overrides = [
        f"federation.rounds={ROUNDS + WARM_UP}",
        f"data={json.dumps(data | {'augment': 'flip_crop'})}",
    ]
    plain, tracked = (
        load_config(CONFIG, [*overrides, f"tracking.enabled={enabled}"])
        for enabled in ("false", "true")
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        cluster.connected(None),
    ):
        pairs = [(_costs(plain), _costs(tracked)) for _ in range(repeats)]
    longer = [100 * (t.seconds / p.seconds - 1) for p, t in pairs]
    computed = [100 * (t.driver - p.driver) / p.seconds for p, t in pairs]
    part = "tracking"
    return [
        median(part, "tracking: round without", "s", [p.seconds for p, _ in pairs]),
        median(part, "tracking: the driver computes more, of a round", "%", computed, TARGET),
        median(part, "tracking: a round takes longer", "%", longer, TARGET),
    ]


def _costs(experiment: Experiment) -> Costs:
    used: dict[int, float] = {}

    def note(metrics: Metrics) -> None:
        used.setdefault(metrics.round, time.process_time())

    history = run(experiment, on_metrics=note).history
    last = experiment.federation.rounds
    # When round r is noted, rounds up to r - 1 are written, or up to r: the same at both ends.
    driver = (used[last] - used[WARM_UP]) / (last - WARM_UP)
    return Costs(statistics.median(history["time/round_s"].tolist()[WARM_UP:]), driver)
