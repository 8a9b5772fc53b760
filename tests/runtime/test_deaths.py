"""A client actor that runs out of memory, or dies while it evaluates: the result is the undisturbed one."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, small_config

from rayfl import load_config, run

RAYFL = str(Path(sys.executable).parent / "rayfl")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(ray_session):
    """A config, and the result of running it undisturbed. FedAvg, as the algorithms of failing.py."""
    config = small_config() | {"algorithm": {"name": "fedavg"}}
    config["resources"] = {"num_actors": 2, "cpus_per_actor": 0.5}
    return config, run(load_config(config), local=True)


@pytest.fixture
def memory_group():
    """A memory cgroup with room for some tensors, inside the one of this process."""
    listed = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    paths = {controllers: path for _, controllers, path in listed}
    if "memory" not in paths or not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("needs the memory controller of cgroup version 1")
    group = Path(f"/sys/fs/cgroup/memory{paths['memory']}/rayfl-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"may make no memory cgroup: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(200_000_000))
        yield group
    finally:
        with contextlib.suppress(OSError):  # a killed process may still be leaving it
            group.rmdir()


def kills(group):
    rows = (line.split() for line in (group / "memory.oom_control").read_text().splitlines())
    return int(dict(rows)["oom_kill"])


def test_the_kernel_kills_an_actor_that_is_out_of_memory(alone, memory_group, tmp_path):
    config, undisturbed = alone
    marker = str(tmp_path / "filled")
    algorithm = {"name": "failing:FillsMemoryOnce", "marker": marker, "group": str(memory_group)}
    result = run(load_config(config | {"algorithm": algorithm}))
    assert kills(memory_group) == 1
    assert result.history["runtime/lost_units"].iloc[-1] == 1
    assert result.model_sha256 == undisturbed.model_sha256


def test_ray_kills_an_actor_that_leaves_the_node_no_memory(alone, tmp_path):
    """By its memory monitor, whose error for the calls of such an actor is another one."""
    config, undisturbed = alone
    marker = tmp_path / "filled"
    algorithm = {"name": "failing:FillsMemoryOnce", "marker": str(marker)}
    (tmp_path / "config.yaml").write_text(json.dumps(config | {"algorithm": algorithm}))
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + 4e9) / memory.total
    if threshold > 0.8:
        pytest.skip("needs 8 GB of free memory")
    done = subprocess.run(
        [RAYFL, "run", "config.yaml", "--json"],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT / 'tests/runtime'}:{ROOT}",
            "RAY_memory_usage_threshold": f"{threshold:.3f}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert marker.exists()  # and who made it never comes back by itself
    assert json.loads(done.stdout)["model_sha256"] == undisturbed.model_sha256


def test_killed_while_it_evaluates(small, tmp_path, ray_session):
    """kill -9 in the middle of an evaluation, which goes on beside the next round."""
    armed = tmp_path / "armed"
    small["model"] = {"name": "failing:MortalWhenEvaluated", "armed": str(armed)}
    small["federation"]["rounds"] = 40
    small["resources"] = {"num_actors": 2, "cpus_per_actor": 0.5}
    undisturbed = run(load_config(small), local=True)

    result = run(load_config(small), on_start=lambda start: armed.touch())
    assert not armed.exists()
    assert result.history["runtime/lost_units"].iloc[-1] >= 1
    assert result.model_sha256 == undisturbed.model_sha256
    for metric in ("test/accuracy", "test/loss"):
        assert result.history[metric].tolist() == undisturbed.history[metric].tolist()
