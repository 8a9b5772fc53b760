"""Kills at random moments, of anything: the result is that of a run that nothing disturbed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import each, head, node
from local_pool import undisturbed

from rayfl import load_config, run
from rayfl.federation.metrics import RoundMetrics

RAYFL = str(Path(sys.executable).parent / "rayfl")


@pytest.fixture
def thirty_rounds(small, tmp_path):
    """Thirty rounds of a fraction of a second, in five work units each; most memories are in files."""
    small["federation"] |= {
        "rounds": 30,
        "clients_per_unit": 1,
        "local_epochs": None,
        "local_steps": 100,
    }
    small["resources"] = {"num_actors": 2, "cpus_per_actor": 0.5, "memories_gb": 1e-5}
    small["checkpoint"] = {"dir": str(tmp_path / "checkpoints"), "every": 5}
    return small


def processes(title):
    """Processes of this test's own Ray whose title starts so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and " ".join(process.cmdline()).startswith(title):
                found.append(process)
    return found


@pytest.mark.timeout(900)
@pytest.mark.long
@each(name=["fedwmsam", "scaffold"])
def test_twenty_kills_of_client_actors(name, thirty_rounds, ray_session):
    """At a random moment of nearly every round a client actor is killed, training or not."""
    thirty_rounds["algorithm"] = {"name": name}
    thirty_rounds["federation"]["local_steps"] = 300
    config = load_config(thirty_rounds)
    moments, kills, ended = random.Random(0), [], threading.Event()

    def kill():
        while not (clients := processes("ray::Client")):  # both are starting
            if ended.wait(0.05):
                return
        with contextlib.suppress(psutil.NoSuchProcess):
            client = moments.choice(clients)
            client.kill()
            kills.append(client.pid)

    def later(record):
        if isinstance(record, RoundMetrics) and len(kills) < 20:
            threading.Timer(moments.uniform(0, 0.2), kill).start()

    try:
        result = run(config, on_metrics=later)
    finally:
        ended.set()
    assert result.model_sha256 == undisturbed(config)
    assert len(kills) >= 20
    # Some hit an actor that was starting.
    assert result.history["runtime/lost_units"].iloc[-1] >= 5


@pytest.mark.slow
def test_kills_of_the_server_actor(thirty_rounds, ray_session):
    thirty_rounds["federation"] |= {"rounds": 15, "local_steps": 500}
    reference = run(load_config(thirty_rounds), local=True)
    killed = []

    def kill(record):
        if record.round in (7, 8, 12) and isinstance(record, RoundMetrics):
            (server,) = processes("ray::ServerActor")
            server.kill()
            killed.append(record.round)

    result = run(load_config(thirty_rounds), on_metrics=kill)
    assert killed == [7, 8, 12]
    assert result.model_sha256 == reference.model_sha256
    accuracy = result.history["test/accuracy"]
    assert accuracy.tolist() == reference.history["test/accuracy"].tolist()


@pytest.mark.long  # each kind of kill has a test of its own that CI has time for
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["fedwmsam", "scaffold"])
def test_kills_of_everything(name, small, tmp_path):
    """kill -9 of the driver, its actors and Ray, five times, then --resume; many of them while it writes."""
    small["federation"] |= {"rounds": 400, "eval_every": 100}
    small["checkpoint"] = {"every": 1, "keep_last": 2}
    small["resources"] = {"num_actors": 1, "memories_gb": 1e-5}
    small["algorithm"] = {"name": name}
    assert kill_and_resume(small, tmp_path) == undisturbed(load_config(small))


def kill_and_resume(config, folder):
    """SHA-256 of the final w after five kills."""
    (folder / "config.yaml").write_text(json.dumps(config))
    command = [RAYFL, "run", "config.yaml", "--json"]
    moments, reached = random.Random(1), [0]
    for _ in range(5):
        resume = ["--resume", "latest"] if reached[-1] else []
        process = subprocess.Popen(
            [*command, *resume],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        while round_of(folder) <= reached[-1] and process.poll() is None:
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 0.5))
        assert process.poll() is None, process.stderr.read()
        kill_tree(process)
        reached.append(round_of(folder))
    assert reached == sorted(set(reached))

    last = [*command, "--resume", "latest", "checkpoint.every=1000"]
    done = subprocess.run(last, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"going on after round {reached[-1]}" in done.stderr
    return json.loads(done.stdout)["model_sha256"]


def round_of(folder):
    names = [path.stem for path in folder.glob("checkpoints/*/*/checkpoint-*.json")]
    return max((int(name.removeprefix("checkpoint-")) for name in names), default=0)


def kill_tree(process):
    """All at once, as when a machine is switched off."""
    tree = psutil.Process(process.pid).children(recursive=True)
    for one in [*tree, psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(20)
    psutil.wait_procs(tree, timeout=20)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_goes_and_one_that_comes(thirty_rounds, tmp_path):
    """kill -9 of a worker node with its raylet and its actors; a new node joins in the middle.

    The sums are so large that each node keeps its own until they are added.
    """
    thirty_rounds["resources"] = {}
    thirty_rounds["model"] = {"name": "mlp", "hidden": [1000]}
    thirty_rounds["federation"] |= {"rounds": 20, "local_steps": 150}
    (tmp_path / "config.yaml").write_text(json.dumps(thirty_rounds))
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(head())
        worker = stack.enter_context(node(f"--address={address}"))
        process = subprocess.Popen(
            [RAYFL, "run", "config.yaml", "--json", f"ray.address={address}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while round_of(tmp_path) < 5:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        os.killpg(worker.pid, signal.SIGKILL)
        stack.enter_context(node(f"--address={address}"))
        output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert "on 2 nodes" in errors
    assert json.loads(output)["model_sha256"] == undisturbed(load_config(thirty_rounds))
