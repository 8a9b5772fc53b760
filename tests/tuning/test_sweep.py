"""Whole sweeps: what is missing runs, what fails is a row, and MLflow has every trial once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from rayfl.config import load_config
from rayfl.errors import ConfigError
from rayfl.experiment import run as run_one
from tuning.config import load_sweep
from tuning.sweep import run

RAYFL = Path(sys.executable).parent / "rayfl"


@pytest.fixture
def sweep_file(tmp_path, small, monkeypatch):
    """Writes a sweep of small experiments in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    base = small | {"tracking": {"enabled": True}}
    del base["seed"]

    def write(**given):
        content = {
            "name": "t",
            "base": base,
            "space": {"algorithm.rho": {"grid": [0.05, 0.1]}},
            **given,
        }
        (tmp_path / "t.yaml").write_text(json.dumps(content))
        return tmp_path / "t.yaml"

    return write


def runs(folder, kind="experiment"):
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rayfl").experiment_id
    return client.search_runs([experiment], f"tags.`rayfl.kind` = '{kind}'")


def table(result):
    return {
        row.trial.hash: (row.state, row.rounds, row.value, row.model_sha256) for row in result.rows
    }


def test_only_what_is_missing_runs(ray_session, sweep_file, tmp_path):
    """The same sweep again runs nothing, a wider one what it adds; trials are as runs of their own."""
    path, started = sweep_file(seeds=[1]), []

    def watch(hash, state, rounds, value, reason):
        if state == "running" and rounds == 0:
            started.append(hash)

    first = run(load_sweep(path), watch=watch)
    assert len(started) == 2
    assert {row.state for row in first.rows} == {"finished"}
    again = run(load_sweep(path), watch=watch)
    assert len(started) == 2
    assert table(again) == table(first)
    wider = run(load_sweep(path, ["space.algorithm.rho.grid=[0.1,0.2,0.05]"]), watch=watch)
    assert len(started) == 3
    assert table(wider).items() > table(first).items()

    trials = {run.data.tags["rayfl.config_hash"]: run for run in runs(tmp_path)}
    (parent,) = runs(tmp_path, "sweep")
    assert len(trials) == len(runs(tmp_path)) == 3
    assert parent.info.run_id == wider.parent_id == first.parent_id
    one = first.rows[0].trial.experiment
    alone = run_one(one)
    assert first.rows[0].model_sha256 == alone.model_sha256
    mine, own = (
        trials[one.hash],
        MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(alone.run_id),
    )
    assert mine.data.params == own.data.params
    assert mine.data.metrics.keys() == own.data.metrics.keys()
    assert mine.data.tags.keys() > own.data.tags.keys()
    assert mine.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_what_cannot_run_is_a_row_and_the_rest_finishes(ray_session, sweep_file, tmp_path):
    space = {
        "algorithm": {
            "grid": [
                {"name": "fedsam"},
                {"name": "fedwmsam", "alpha_min": 0.8, "alpha_max": 0.2},
                {"name": "failing:Explodes"},
                {"name": "failing:Dies"},
            ]
        }
    }
    result = run(load_sweep(sweep_file(space=space), ["base.federation.max_norm=null"]))
    rows = {row.trial.point["algorithm"]["name"]: row for row in result.rows}
    assert {name: row.state for name, row in rows.items()} == {
        "fedsam": "finished",
        "fedwmsam": "infeasible",
        "failing:Explodes": "failed",
        "failing:Dies": "failed",
    }
    assert "alpha_min = 0.8 exceeds alpha_max = 0.2" in rows["fedwmsam"].reason
    assert "is not finite; lower federation.lr" in rows["failing:Explodes"].reason
    assert "the client actor died, 4 times in a row" in rows["failing:Dies"].reason
    assert "Traceback" in rows["failing:Dies"].log.read_text()
    assert not result.succeeded
    found = runs(tmp_path)
    assert len(found) == 4
    states = {run.data.tags["rayfl.state"]: run.info.status for run in found}
    assert states == {"finished": "FINISHED", "failed": "FAILED", "infeasible": "FAILED"}


def test_a_missing_dataset_is_a_row_of_its_own(ray_session, sweep_file):
    space = {"data": {"grid": [{"name": "digits"}, {"name": "npz", "path": "/nowhere.npz"}]}}
    result = run(load_sweep(sweep_file(space=space)))
    assert [row.state for row in result.rows] == ["finished", "infeasible"]
    assert "data.path = '/nowhere.npz'" in result.rows[1].reason


def test_none_that_can_run_is_an_error_before_anything_starts(sweep_file, tmp_path):
    with pytest.raises(ConfigError, match=r"none of the 2 trials can run: federation.lr = -1"):
        run(load_sweep(sweep_file(), ["base.federation.lr=-1"]))
    assert not (tmp_path / "mlflow.db").exists()


def test_asha_cuts_at_its_rungs(ray_session, sweep_file):
    """Rungs at rounds 2 and 4: every trial ends at one of them, or runs all 8 rounds."""
    space = {"federation.lr": {"grid": [0.1, 1e-5, 0.05, 1e-4, 1e-3, 0.02]}}
    overrides = ["scheduler={name: asha, grace_period: 2, reduction_factor: 2}"]
    result = run(load_sweep(sweep_file(space=space), [*overrides, "base.federation.rounds=8"]))
    assert {row.rounds for row in result.rows} <= {2, 4, 8}
    cut = [row for row in result.rows if row.state == "stopped_early"]
    assert cut
    for row in cut:
        assert row.reason.startswith(f"round {row.rounds}: ASHA stopped it with test/accuracy 0.")
    assert any(row.state == "finished" and row.rounds == 8 for row in result.rows)
    assert result.succeeded


@pytest.mark.slow
def test_population_based_training_exploits_at_exact_rounds(ray_session, sweep_file, tmp_path):
    overrides = [
        "scheduler={name: pbt, mutate: [federation.lr], every: 2, quantile: 0.5}",
        "base.federation.rounds=8",
    ]
    space = {"federation.lr": {"grid": [1e-6, 0.02, 0.1]}}
    result = run(load_sweep(sweep_file(space=space), overrides))
    assert [row.state for row in result.rows] == ["finished"] * 3
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    curves = [
        {m.step: m.value for m in client.get_metric_history(row.run_id, "mutated/federation.lr")}
        for row in result.rows
    ]
    assert all(sorted(curve) == list(range(1, 9)) for curve in curves)
    changes = {r for curve in curves for r in range(2, 9) if curve[r] != curve[r - 1]}
    assert changes
    assert changes <= {3, 5, 7}


@pytest.mark.slow
def test_kill_9_in_the_middle_and_the_same_command_is_as_if_nothing_was(sweep_file, tmp_path):
    path = sweep_file(seeds=[0, 1], space={"algorithm.rho": {"grid": [0.05, 0.1, 0.2]}})
    command = [RAYFL, "sweep", path, "--json", "base.federation.rounds=40"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "mlruns").exists():
            states = [r.data.tags.get("rayfl.state") for r in runs(tmp_path)]
            if "finished" in states and "running" in states:
                break
        time.sleep(0.5)
    assert process.poll() is None, "too fast to be killed in the middle"
    process.kill()
    process.wait()
    done = {r.info.run_id for r in runs(tmp_path) if r.data.tags["rayfl.state"] == "finished"}
    ends = {r.info.run_id: r.info.end_time for r in runs(tmp_path) if r.info.run_id in done}

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert again.returncode == 0, again.stderr
    trials = json.loads(again.stdout)["trials"]
    found = runs(tmp_path)
    assert len(trials) == len(found) == 6
    assert {t["state"] for t in trials} == {"finished"}
    assert {r.info.run_id: r.info.end_time for r in found if r.info.run_id in done} == ends
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for trial in trials:
        steps = [m.step for m in client.get_metric_history(trial["run_id"], "train/loss")]
        assert sorted(steps) == list(range(1, 41))
    raw = json.loads(path.read_text())["base"]
    raw["federation"]["rounds"] = 40
    raw["checkpoint"] = {"every": None}
    for trial in trials[:1]:
        overrides = [f"algorithm.rho={trial['point']['algorithm.rho']}", f"seed={trial['seed']}"]
        undisturbed = subprocess.run(
            [RAYFL, "run", _written(tmp_path / "one.yaml", raw), *overrides, "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(undisturbed.stdout)["model_sha256"] == trial["model_sha256"]


def _written(path, content):
    path.write_text(json.dumps(content))
    load_config(path)
    return path


@pytest.mark.slow
def test_an_interrupt_leaves_a_sweep_that_goes_on(sweep_file, tmp_path):
    path = sweep_file()
    command = [RAYFL, "sweep", path, "base.federation.rounds=4000"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "mlruns").exists() and any(
            "train/loss" in r.data.metrics for r in runs(tmp_path)
        ):
            break
        time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert {r.data.tags["rayfl.state"] for r in runs(tmp_path)} == {"running"}
    assert {r.info.status for r in runs(tmp_path)} == {"KILLED"}


@pytest.mark.slow
def test_a_sweep_on_two_nodes_leaves_what_one_machine_leaves(sweep_file, tmp_path):
    """A head node with no CPU for trials, and a worker node: another process, as on another machine."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        pytest.skip("another Ray is in use in this process")
    path = sweep_file()
    two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        two.add_node(num_cpus=1)
        command = [RAYFL, "sweep", path, "--json", f"base.ray.address={two.address}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    finally:
        two.shutdown()
    assert done.returncode == 0, done.stderr
    assert "at once: 2 now" in done.stderr
    trials = json.loads(done.stdout)["trials"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [t["state"] for t in trials] == ["finished"] * 2
    assert all(client.list_artifacts(t["run_id"]) for t in trials)


@pytest.mark.slow
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
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if any("train/loss" in r.data.metrics for r in _runs_at(uri)):
                break
            time.sleep(0.2)
        assert process.poll() is None, process.communicate()
        _end(server)
        time.sleep(15)
        server = _server(tmp_path, port)
        out, err = process.communicate(timeout=250)
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
