"""One process at a time runs a sweep."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from rayfl.errors import ConfigError, RunError
from rayfl.tracking.defaults import default_uri
from tuning import lease
from tuning.lease import CLAIM, Claim, Lease

RAYFL = Path(sys.executable).parent / "rayfl"


@pytest.fixture
def claimed(store_here, monkeypatch):
    """Claims one and the same sweep; what it has claimed is released at the end."""
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LOST_SECONDS", 2.0)
    client = MlflowClient(default_uri())
    run_id = client.create_run("0").info.run_id
    made = []

    def claim():
        made.append(Lease(client, run_id, "t"))
        return made[-1]

    claim.tags = lambda: [
        (k, v) for k, v in client.get_run(run_id).data.tags.items() if k.startswith(CLAIM)
    ]
    claim.put = lambda other: client.set_tag(run_id, f"{CLAIM}other", json.dumps(asdict(other)))
    claim.delete = lambda key: client.delete_tag(run_id, key)
    yield claim
    for one in made:
        one.release()


def other(pid=None, machine=None, **given):
    """A claim of this machine's first process, which lives, or of another one."""
    return Claim("host", machine or lease._machine(), pid or 1, time.time(), **given)


def gone():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_claim_is_released_at_the_end(claimed):
    claimed().release()
    assert claimed.tags() == []
    claimed()
    assert len(claimed.tags()) == 1


def test_who_holds_the_sweep_is_named(claimed):
    claimed.put(other(holds=True))
    with pytest.raises(ConfigError, match=r"sweep 't' is run by process 1 on host, since 2\d"):
        claimed()
    assert len(claimed.tags()) == 1


def test_a_process_of_this_machine_that_is_gone_is_replaced_at_once(claimed):
    claimed.put(other(gone(), holds=True))
    began = time.monotonic()
    claimed()
    assert time.monotonic() - began < lease.LOST_SECONDS
    assert len(claimed.tags()) == 1


@pytest.mark.slow
def test_a_process_of_another_machine_is_replaced_when_it_is_not_heard_of(claimed):
    claimed.put(other(machine="elsewhere", holds=True))
    began = time.monotonic()
    claimed()
    assert time.monotonic() - began > lease.LOST_SECONDS


def test_a_process_of_another_machine_that_is_heard_of_holds_the_sweep(claimed):
    ended = threading.Event()

    def renew():
        number = 0
        while not ended.wait(0.2):
            number += 1
            claimed.put(other(machine="elsewhere", holds=True, renewed=number))

    claimed.put(other(machine="elsewhere", holds=True))
    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(ConfigError, match="is run by process 1 on host"):
        claimed()
    ended.set()
    thread.join()


def test_a_holder_that_was_replaced_notices(claimed):
    mine = claimed()
    mine.check()
    ((key, _),) = claimed.tags()
    claimed.delete(key)

    def check_for_some_seconds():
        until = time.monotonic() + 20
        while time.monotonic() < until:
            mine.check()
            time.sleep(0.05)

    with pytest.raises(RunError, match="sweep 't' was taken over by another command"):
        check_for_some_seconds()


@pytest.mark.slow
def test_a_sweep_that_two_commands_start_runs_once(sweep_file, tmp_path):
    path = sweep_file(seeds=[0, 1])
    command = [RAYFL, "sweep", path, "base.federation.rounds=30", "--json"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=500) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 2], [0, 0]), ends  # the second may have come when the first was done
    for process, (out, err) in zip(both, ends, strict=True):
        assert "Traceback" not in err
        if process.returncode == 0:
            assert {t["state"] for t in json.loads(out)["trials"]} == {"finished"}
        else:
            assert "error: sweep 't' is run by process" in err
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rayfl").experiment_id
    found = client.search_runs([experiment], "tags.`rayfl.kind` = 'experiment'")
    assert len(found) == 4
    for run in found:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, 31))


@pytest.mark.long
def test_a_killed_sweep_does_not_hold_its_lease(sweep_file, tmp_path):
    path = sweep_file()
    command = [RAYFL, "sweep", path, "base.federation.rounds=2000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "running" in line:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = subprocess.run(
        [RAYFL, "sweep", path, "base.federation.rounds=3"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0, again.stderr
