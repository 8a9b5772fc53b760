"""An MLflow store of runs whose numbers are known, written as `rayfl run` and `rayfl sweep` write them."""

import itertools
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from mlflow.tracking import MlflowClient

from rayfl.config.schema import Experiment, load_config
from rayfl.tracking.mlflow import RunTracker
from rayfl.tracking.store import TrackingStore

ROUNDS = 12
TARGETS = [0.5, 0.7, 0.8]
SEEDS = (0, 1, 2)
ALPHAS = (0.1, 0.5)
RHOS = (0.05, 0.1)
SETTINGS = [("fedavg", None), *(("fedwmsam", rho) for rho in RHOS)]


class Stored(NamedTuple):
    """A store, and what was put into it."""

    uri: str
    known: pd.DataFrame
    """Finished runs that count: algorithm, rho, alpha, seed, and a column a number."""
    hashes: dict[str, str]
    """Config hash by run id."""


def top(algorithm: str, rho: float | None, alpha: float, seed: int) -> float:
    """The accuracy that a run's curve tends to."""
    of_seed = 0.013 * seed**2 * (1 + alpha) + 0.02 * seed * (rho or 0)
    return 0.7 + (0.1 if rho == 0.1 else 0.03 * bool(rho)) + 0.1 * alpha + of_seed


def config(algorithm: str, rho: float | None, alpha: float, seed: int) -> Experiment:
    base = {
        "partition": {"name": "dirichlet"},
        "model": {"name": "mlp", "hidden": [16]},
        "federation": {"clients": 10, "cohort": 5, "rounds": ROUNDS, "local_epochs": 1},
        "tracking": {"targets": TARGETS},
    }
    # The same in all runs, but no default: it must survive a change of the algorithm's name.
    chosen = [
        f"algorithm.name={algorithm}",
        "algorithm.server_lr=0.9",
        *([f"algorithm.rho={rho}"] if rho else []),
    ]
    return load_config(base, [*chosen, f"partition.alpha={alpha}", f"seed={seed}"])


def rounds(tops: float, seed: int, last: int = ROUNDS) -> dict[int, dict[str, float]]:
    """Metrics of each round: costs differ by round and by seed."""
    return {
        r: {
            "test/accuracy": tops * (1 - 0.6**r),
            "test/loss": 2 * 0.8**r,
            "train/loss": 2.5 * 0.8**r,
            "cost/bytes_up": 1000.0 + r,
            "cost/bytes_down": 2000.0,
            "cost/backward_passes": 10.0,
            "time/round_s": 0.5 + 0.01 * seed + 0.001 * r,
        }
        for r in range(1, last + 1)
    }


def record(
    store: TrackingStore, run: Experiment, history: dict, status: str = "FINISHED", **tags: str
) -> str:
    """One run; a status of RUNNING leaves it open."""
    tracker = RunTracker(store, run, "digits")
    tracker.describe_config()
    for key, value in tags.items():
        tracker.tag(f"rayfl.{key}", value)
    for r, metrics in history.items():
        tracker.log(r, metrics)
    tracker.flush()
    if status != "RUNNING":
        tracker.finish(status)  # type: ignore[arg-type]
    return tracker.run_id


def fill(folder: Path) -> Stored:
    """18 finished runs of two algorithms, and one or two of everything else that a store may hold."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    for name in ("rayfl", "other", "empty"):
        client.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())
    store, known, hashes = TrackingStore(uri, "rayfl"), [], {}
    for (algorithm, rho), alpha, seed in itertools.product(SETTINGS, ALPHAS, SEEDS):
        run = config(algorithm, rho, alpha, seed)
        if (algorithm, alpha, seed) == ("fedavg", 0.5, 1):
            # An earlier attempt, with another number: the latest finished one counts.
            record(store, run, rounds(0.3, seed))
        history = rounds(top(algorithm, rho, alpha, seed), seed)
        if algorithm == "fedwmsam":
            for r in history:
                history[r]["server/alpha"] = 0.1 + 0.01 * r
        run_id = record(store, run, history)
        if (algorithm, alpha, seed) == ("fedavg", 0.5, 2):
            # A later attempt that failed does not undo what finished.
            record(store, run, rounds(0.2, seed, last=3), "FAILED")
        hashes[run_id] = run.hash
        known.append(
            {"run_id": run_id, "algorithm": algorithm, "rho": rho, "alpha": alpha, "seed": seed}
            | {"final": history[ROUNDS]["test/accuracy"]}
            | {"last10": sum(history[r]["test/accuracy"] for r in range(3, 13)) / 10}
            | {"seconds": sum(h["time/round_s"] for h in history.values())}
        )
    _others(store, client)
    return Stored(uri, pd.DataFrame(known), hashes)


def _others(store: TrackingStore, client: MlflowClient) -> None:
    wmsam = ("fedwmsam", 0.1, 0.5)
    sweep = client.create_run(
        store.experiment_id, run_name="sweep", tags={"rayfl.kind": "sweep", "rayfl.sweep": "grid"}
    )
    child = {"kind": "experiment", "sweep": "grid"}
    for seed, (state, status, reason) in enumerate(
        [
            ("failed", "FAILED", "round 2, clients [3]: the loss <b>is</b> not finite & more"),
            ("stopped_early", "FINISHED", "ASHA: below the half at round 4"),
            ("infeasible", "FAILED", "partition.alpha = 1e-9: no client has a sample"),
        ],
        start=10,
    ):
        high = rounds(0.99, seed, last=4)  # better than all: must not be mixed in
        tags = {**child, "state": state, "reason": reason}
        run_id = record(store, config(*wmsam, seed), high, status, **tags)
        client.set_tag(run_id, "mlflow.parentRunId", sweep.info.run_id)
    record(store, config(*wmsam, 13), rounds(0.99, 13, last=4), "RUNNING")
    record(store, config(*wmsam, 14), rounds(0.99, 14, last=4), "KILLED")
    client.set_terminated(sweep.info.run_id)
    # Somebody else's run in the same experiment, and one of rayfl's in another.
    client.set_terminated(client.create_run(store.experiment_id).info.run_id)
    record(TrackingStore(store.uri, "other"), config("fedcm", None, 0.1, 0), rounds(0.6, 0))
