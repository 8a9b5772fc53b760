"""Sweeps that are killed, interrupted, on several nodes, and whose tracking server goes away."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import head, node
from local_pool import undisturbed
from mlflow.tracking import MlflowClient
from sweeps import runs

from rayfl.storage.checkpoint import saved_in
from rayfl.storage.storage import Storage
from tuning.config import load_sweep
from tuning.sweep import run

RAYFL = Path(sys.executable).parent / "rayfl"


@pytest.mark.slow
def test_kill_9_in_the_middle_and_the_same_sweep_is_as_if_nothing_was(
    sweep_file, tmp_path, ray_session
):
    path = sweep_file(seeds=[0, 1], space={"algorithm.rho": {"grid": [0.05, 0.1]}})
    overrides = ["base.federation.rounds=150", "base.checkpoint.every=1"]
    command = [RAYFL, "sweep", path, *overrides, "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_until(lambda: {"finished", "running"} <= states(tmp_path) and saved(tmp_path), process)
    process.kill()
    process.wait()
    time.sleep(5)  # its actors notice, and may have written one more checkpoint
    done = ends(tmp_path, "finished")
    reached = saved(tmp_path)
    assert done
    assert reached

    reported = {}

    def on_update(update):
        if update.state == "running" and update.reason:  # where it goes on
            reported.setdefault(update.trial.hash, update.rounds)

    result = run(load_sweep(path, overrides), on_update=on_update)
    assert [row.state for row in result.rows] == ["finished"] * 4
    assert {hash: reported[hash] for hash in reached} == reached
    assert ends(tmp_path, "finished").items() > done.items()
    assert len(runs(tmp_path)) == 4
    assert not any((tmp_path / "checkpoints").iterdir())  # nobody needs them any more
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for row in result.rows:
        steps = [m.step for m in client.get_metric_history(row.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, 151))
        if row.trial.hash in reached:
            assert undisturbed(row.trial.experiment) == row.model_sha256


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_with_the_same_command(sweep_file, tmp_path):
    path = sweep_file()
    overrides = ["base.federation.rounds=200", "base.checkpoint.every=1"]
    command = [RAYFL, "sweep", path, *overrides, "--json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: saved(tmp_path), process)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert not out
    assert "running" in states(tmp_path)
    assert {r.info.status for r in runs(tmp_path)} <= {"KILLED", "FINISHED"}
    # Where it runs is no part of what it is.
    elsewhere = [*command, "base.resources.num_actors=1", "base.checkpoint.keep_last=3"]
    again = subprocess.run(elsewhere, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert [t["state"] for t in json.loads(again.stdout)["trials"]] == ["finished"] * 2
    assert len(runs(tmp_path)) == 2


@pytest.mark.long
def test_a_sweep_on_two_nodes_leaves_what_one_machine_leaves(sweep_file, tmp_path):
    path = sweep_file()
    alone = subprocess.run(
        [RAYFL, "sweep", path, "--json", "storage=alone", "base.tracking.experiment=alone"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    with head() as at, node(f"--address={at}"):
        address = f"base.ray.address={at}"
        plan = [RAYFL, "plan", path, address, "base.checkpoint.every=1"]
        planned = subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True)
        command = [RAYFL, "sweep", path, "--json", address]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert planned.returncode == 0, planned.stderr
    assert "at once: 2 now (2 client actors fit)" in planned.stdout
    own = tmp_path / "checkpoints"
    assert f"base.checkpoint.dir = '{own}': a trial that moves to another node starts anew" in (
        planned.stdout
    )
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [t["state"] for t in trials] == ["finished"] * 2
    digests = [t["model_sha256"] for t in json.loads(alone.stdout)["trials"]]
    assert [t["model_sha256"] for t in trials] == digests
    assert all(client.list_artifacts(t["run_id"]) for t in trials)


@pytest.mark.long
def test_nodes_that_never_come_are_one_error(sweep_file, tmp_path):
    with head("--num-cpus=0") as address:
        command = [RAYFL, "sweep", sweep_file(), f"base.ray.address={address}"]
        waits = ["base.resources.num_actors=2", "base.resources.autoscale_timeout_s=3"]
        done = subprocess.run(
            [*command, *waits], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2, done.stderr
    assert "base.resources.num_actors = 2: the cluster did not grow" in done.stderr
    assert "raise base.resources.autoscale_timeout_s = 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert {r.info.status for r in runs(tmp_path)} <= {"FAILED"}


@pytest.mark.slow
def test_a_plan_starts_nothing(sweep_file, tmp_path):
    space = {"algorithm.rho": {"grid": [0.05, 0.1]}, "partition.alpha": {"grid": [0.1, -1]}}
    command = [RAYFL, "plan", sweep_file(seeds=[0, 1, 2], space=space)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sweep t: 12 trials (4 points x 3 seeds), search grid, scheduler")
    assert "6 trials cannot run:" in done.stdout
    problem = "  space.partition.alpha = -1: must be a number greater than 0\n"
    assert f"{problem}    algorithm.rho=0.05 partition.alpha=-1 seed=0\n" in done.stdout
    assert "checkpoint.dir" not in done.stdout
    assert "storage" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]


@pytest.mark.long
def test_a_tracking_server_that_goes_away_and_comes_back(sweep_file, tmp_path):
    """Training goes on meanwhile, and what was written down arrives, every round once."""
    port = 30000 + os.getpid() % 10000
    uri = f"http://127.0.0.1:{port}"
    server = _server(tmp_path, port)
    command = [RAYFL, "sweep", sweep_file(), "--json", f"base.tracking.uri={uri}"]
    try:
        process = subprocess.Popen(
            [*command, "base.federation.rounds=60"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline and process.poll() is None:
            if any("train/loss" in r.data.metrics for r in _runs_at(uri)):
                break
            time.sleep(0.2)
        assert process.poll() is None, process.communicate()
        _end(server)
        time.sleep(15)
        server = _server(tmp_path, port)
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        for trial in json.loads(out)["trials"]:
            history = MlflowClient(uri).get_metric_history(trial["run_id"], "train/loss")
            assert sorted({m.step for m in history}) == list(range(1, 61))
            assert trial["state"] == "finished"
        assert len(_runs_at(uri)) == 2
    finally:
        _end(server)


def _server(folder, port):
    """A real MLflow server, once it answers."""
    import urllib.request

    process = subprocess.Popen(
        [
            *(RAYFL.parent / "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
            *("--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ],
        cwd=folder,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return process
        except OSError:
            time.sleep(0.5)
    raise AssertionError("mlflow server did not start")


def _end(server):
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _runs_at(uri):
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("rayfl")
    if experiment is None:
        return []
    return client.search_runs([experiment.experiment_id], "tags.`rayfl.kind` = 'experiment'")


def wait_until(holds, process):
    """Wait until something holds while this process runs."""
    deadline = time.monotonic() + 500
    while not holds():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.2)


def states(folder):
    """The states that trials are in."""
    return {r.data.tags.get("rayfl.state") for r in tracked(folder)}


def ends(folder, state):
    """When the runs of trials in this state ended."""
    return {
        r.info.run_id: r.info.end_time
        for r in tracked(folder)
        if r.data.tags.get("rayfl.state") == state
    }


def tracked(folder):
    """The runs, once the store is there."""
    return runs(folder) if (folder / "mlruns").exists() else []


def saved(folder):
    """The round of the last checkpoint, by config hash, of the trials that have one."""
    found = {}
    for path in folder.glob("checkpoints/*/t-*"):
        if rounds := [one.round for one in saved_in(Storage(str(path)))]:
            found[path.parent.name] = max(rounds)
    return found
