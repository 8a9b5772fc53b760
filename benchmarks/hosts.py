"""Bytes and seconds of a round on several hosts: run it on the first of them (benchmarks/hosts.sh).

It prints a line of JSON: bytes into and out of the server's host in a round, and seconds of a round beside
the training of its busiest actor. One local step of one sample, so that what travels is what takes time.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from benchmarks.workloads import random_data
from rayfl import load_config, run
from rayfl.federation.metrics import Metrics, RoundMetrics

WARM_UP = 2


def transferred(device: str = "eth0") -> tuple[int, int]:
    """Bytes that this host has received and sent."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            fields = numbers.split()
            return int(fields[0]), int(fields[8])
    raise SystemExit(f"{device}: no such device; run this by benchmarks/hosts.sh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", default="fedavg")
    parser.add_argument("--cohort", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--model", default="resnet18")
    args = parser.parse_args()
    content = {
        "data": random_data("hosts", 1_000, (32, 32, 3), np.uint8),
        "partition": {"name": "iid"},
        "model": {"name": args.model},
        "algorithm": {"name": args.algorithm},
        "federation": {
            "clients": args.cohort,
            "cohort": args.cohort,
            "rounds": args.rounds,
            "clients_per_unit": 1,
            "local_steps": 1,
            "batch_size": 1,
            "eval_every": args.rounds,
        },
        "ray": {"address": "auto"},
        "tracking": {"enabled": False},
        "checkpoint": {"every": None},
    }
    rows: list[tuple[tuple[int, int], dict[str, float]]] = []

    def note(metrics: Metrics) -> None:
        if isinstance(metrics, RoundMetrics):
            rows.append((transferred(), metrics.values))

    result = run(load_config(content), on_metrics=note)
    rounds = len(rows) - WARM_UP
    before, after = rows[WARM_UP - 1][0], rows[-1][0]
    received, sent = ((b - a) / rounds for a, b in zip(before, after, strict=True))
    values = [values for _, values in rows[WARM_UP:]]
    print(
        json.dumps(
            {
                "megabytes_in": received / 1e6,
                "megabytes_out": sent / 1e6,
                "beside_training_s": statistics.median(v["time/overhead_s"] for v in values),
                "round_s": statistics.median(v["time/round_s"] for v in values),
                "sha256": result.model_sha256,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
