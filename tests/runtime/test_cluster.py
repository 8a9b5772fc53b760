"""Connecting to Ray, and the reservation of what was planned."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table

from rayfl.errors import ConfigError
from rayfl.federation.specs import UnitsPerRound
from rayfl.runtime import actors, cluster
from rayfl.runtime.placement import ResourceRequest, place


@pytest.mark.slow
def test_resources_in_use_are_an_error_within_the_time_out(ray_session, monkeypatch):
    monkeypatch.setattr(actors, "PLACEMENT_TIMEOUT_S", 1)
    group = ray.util.placement_group([{"CPU": 3}])
    assert group.wait(20)
    try:
        placement = place(
            ResourceRequest(num_actors=1, cpus_per_actor=None, gpus_per_actor=None),
            UnitsPerRound(10, 10),
        )
        with (
            pytest.raises(ConfigError, match=r"its resources are in use \(free: 0 CPU"),
            actors.server_actor(None, None, placement),
        ):
            pass
    finally:
        ray.util.remove_placement_group(group)


def test_nodes_that_never_come_are_an_error_after_the_wait(ray_session, monkeypatch):
    monkeypatch.setattr(actors, "PLACEMENT_TIMEOUT_S", 1)
    wanted = ResourceRequest(
        num_actors=50, cpus_per_actor=1, gpus_per_actor=None, autoscale_timeout_s=1.0
    )
    with (
        pytest.raises(
            ConfigError, match=r"= 50: the cluster did not grow .*\.autoscale_timeout_s = 1,"
        ),
        actors.server_actor(None, None, place(wanted, UnitsPerRound(10, 10))),
    ):
        pass
    (state,) = {g["state"] for g in placement_group_table().values() if len(g["bundles"]) == 50}
    assert state == "REMOVED"  # the demand was withdrawn: no node comes for it later


@pytest.mark.timeout(120)
def test_nobody_at_the_address_is_an_error(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(ConfigError, match=r"ray.address = '127.0.0.1:9': no Ray cluster answers"),
        cluster.connected("127.0.0.1:9"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.ray
def test_an_object_store_larger_than_the_machine_is_an_error():
    code = "from rayfl.runtime import actors, cluster\nwith cluster.connected(None, 1000.0): pass"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: ray.object_store_gb = 1000.0: must leave room" in started.stderr


def test_the_callers_connection_is_used_and_left_open(ray_session):
    with cluster.connected(None):
        assert ray.cluster_resources()["CPU"] == 3
    assert ray.is_initialized()


def test_the_directory_of_ones_own_cluster_goes_and_no_other(tmp_path):
    own, other, latest = tmp_path / "session_1", tmp_path / "session_2", tmp_path / "session_latest"
    (own / "logs").mkdir(parents=True)
    other.mkdir()
    cluster.RayFolder().delete()
    kept = cluster.RayFolder(str(own))
    assert kept.keep() == f"{own}/logs"
    kept.delete()
    assert own.exists()
    latest.symlink_to(other)  # a cluster that was started later
    cluster.RayFolder(str(own)).delete()
    assert {*tmp_path.iterdir()} == {other, latest}
    latest.unlink()
    latest.symlink_to(other)
    cluster.RayFolder(str(other)).delete()
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_of_ones_own_leaves_logs_only_if_something_failed(monkeypatch):
    code = """
from rayfl.runtime.cluster import connected
try:
    with connected(None): raise ValueError("failed")
except ValueError as error:
    print(*error.__notes__)
with connected(None): pass
"""
    with tempfile.TemporaryDirectory() as place:  # short: Ray has sockets in it
        monkeypatch.setenv("RAY_TMPDIR", place)
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        (session,) = Path(place, "ray").iterdir()
        assert ran.stdout == f"Ray's logs are in {session}/logs\n"
        assert [*(session / "logs").iterdir()]
