"""Placement: what fits is planned, what does not is an error before any actor starts."""

import time

import pytest
import ray

from rayfl.errors import ConfigError
from rayfl.runtime import cluster
from rayfl.runtime.cluster import Resources, place


def resources(actors=None, cpus=None, gpus=None):
    return Resources(num_actors=actors, cpus_per_actor=cpus, gpus_per_actor=gpus)


def test_auto_takes_what_fits_and_has_work(ray_session):
    assert place(resources(), units_per_round=10).actors == 3
    assert place(resources(), units_per_round=2).actors == 2
    assert place(resources(cpus=1.5), units_per_round=10).actors == 2


def test_more_actors_than_cpus_share_them(ray_session):
    assert place(resources(actors=3), 10).cpus == 1
    assert place(resources(actors=4), 10).cpus == 0.5
    assert place(resources(actors=12), 10).cpus == 0.25


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (resources(actors=13), r"num_actors = 13: 13 client actors with 0.25 CPU each do not fit"),
        (resources(cpus=4.0), r"num_actors = auto: 1 client actors with 4 CPU each do not fit"),
        (resources(gpus=0.5), r"with 0.25 CPU and 0.5 GPU each do not fit.*\[3 CPU, 0 GPU\]"),
    ],
)
def test_what_does_not_fit_is_an_error_at_once(wanted, message, ray_session):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        place(wanted, units_per_round=10)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "expected"),
    [
        ({"CPU": 8.0, "GPU": 1.0}, 1.0, 0.25, 4),
        ({"CPU": 2.0, "GPU": 1.0}, 1.0, 0.25, 2),
        ({"CPU": 16.0, "GPU": 2.0}, 1.0, 0.4, 4),  # what is left of each GPU is lost
        ({"CPU": 16.0, "GPU": 3.0}, 1.0, 2.0, 1),
        ({"CPU": 16.0}, 1.0, 0.1, 0),
        ({"CPU": 1.0}, 0.1, 0.0, 10),
    ],
)
def test_slots_of_a_node(node, cpus, gpus, expected):
    assert cluster.room_on(node, cpus, gpus) == expected


def test_resources_in_use_are_an_error_within_the_time_out(ray_session, monkeypatch):
    monkeypatch.setattr(cluster, "PLACEMENT_TIMEOUT_S", 1)
    group = ray.util.placement_group([{"CPU": 3}])
    assert group.wait(20)
    try:
        placement = place(resources(actors=1), 10)
        with (
            pytest.raises(ConfigError, match=r"its resources are in use \(free: 0 CPU"),
            cluster.launched(None, placement),
        ):
            pass
    finally:
        ray.util.remove_placement_group(group)


def test_nobody_at_the_address_is_an_error_within_seconds(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    began = time.monotonic()
    with (
        pytest.raises(ConfigError, match=r"ray.address = '127.0.0.1:9': no Ray cluster answers"),
        cluster.connected("127.0.0.1:9"),
    ):
        pass
    assert time.monotonic() - began < 10


def test_the_callers_connection_is_used_and_left_open(ray_session):
    with cluster.connected(None):
        assert ray.cluster_resources()["CPU"] == 3
    assert ray.is_initialized()
