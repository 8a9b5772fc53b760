"""Every search with every scheduler, from the command line: killed and started again, the same table."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import head
from mlflow.tracking import MlflowClient

RAYFL = Path(sys.executable).parent / "rayfl"
ROUNDS = 12
DRAWN = {"federation.lr": {"choice": [0.1, 1e-5, 0.05, 1e-3, 0.02, 0.2]}}
SEARCHES = {
    "grid": ({"name": "grid"}, {"federation.lr": {"grid": [0.1, 1e-5, 0.05, 1e-3]}}),
    "random": ({"name": "random", "num_samples": 4}, DRAWN),
    "optuna": ({"name": "optuna", "num_samples": 4}, DRAWN),
}
SCHEDULERS = {
    "none": {"name": "none"},
    "asha": {"name": "asha", "grace_period": 2, "reduction_factor": 2},
    "median": {"name": "median", "grace_period": 4, "every": 2, "min_samples": 2},
    "pbt": {"name": "pbt", "mutate": ["federation.lr"], "every": 4, "quantile": 0.5},
}
IN_SLOW = {("optuna", "asha", 1)}
MATRIX = [
    pytest.param(
        search,
        scheduler,
        seeds,
        marks=pytest.mark.slow if (search, scheduler, seeds) in IN_SLOW else pytest.mark.long,
    )
    for search in SEARCHES
    for scheduler in SCHEDULERS
    for seeds in (1, 3)
    if (search, scheduler) != ("optuna", "pbt")  # which is refused
]


@pytest.fixture(scope="module")
def cluster():
    with head("--num-cpus=2") as address:
        yield address


def trials_of(done):
    """The rows of a sweep's JSON, which differ between commands in the run alone."""
    assert done.returncode == 0, done.stderr
    keys = ("point", "seed", "state", "rounds", "value", "model_sha256")
    rows = [{key: trial[key] for key in keys} for trial in json.loads(done.stdout)["trials"]]
    return sorted(rows, key=lambda row: json.dumps([row["point"], row["seed"]]))


@pytest.mark.parametrize(("search", "scheduler", "seeds"), MATRIX)
def test_killed_and_started_again_it_has_the_same_table(
    search, scheduler, seeds, cluster, sweep_file, tmp_path
):
    pytest.importorskip("optuna")
    how, space = SEARCHES[search]
    path = sweep_file(
        search=how, space=space, scheduler=SCHEDULERS[scheduler], seeds=[*range(seeds)]
    )
    overrides = [f"base.federation.rounds={ROUNDS}", "base.checkpoint.every=1"]
    command = [RAYFL, "sweep", path, *overrides, f"base.ray.address={cluster}", "--json"]

    def sweep(name):
        command_of_name = [*command, f"name={name}", f"base.checkpoint.dir={name}"]
        return subprocess.Popen(
            command_of_name, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ended(process):
        out, err = process.communicate(timeout=400)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    whole = trials_of(ended(sweep("whole")))
    killed = sweep("killed")
    assert killed.stderr is not None
    for line in killed.stderr:
        if " running" in line:
            break
    time.sleep(random.uniform(0, 3))
    killed.kill()
    killed.communicate()
    again = trials_of(ended(sweep("killed")))
    assert again == whole
    ends = {"finished", "stopped_early"} if scheduler in ("asha", "median") else {"finished"}
    assert {row["state"] for row in again} <= ends
    assert all(row["rounds"] == ROUNDS for row in again if row["state"] == "finished")
    of_point = {}
    for row in again:
        of_point.setdefault(json.dumps(row["point"]), []).append((row["state"], row["rounds"]))
    if scheduler != "pbt":
        assert all(len(set(states)) == 1 for states in of_point.values())

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rayfl").experiment_id
    which = "tags.`rayfl.sweep` = 'killed' and tags.`rayfl.kind` = 'experiment'"
    runs = client.search_runs([experiment], which)
    assert len(runs) == len(again)
    for run in runs:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, int(run.data.metrics["rounds"]) + 1))
