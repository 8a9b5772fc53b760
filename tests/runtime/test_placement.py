"""Placement: what fits is planned, what does not is an error before any actor starts."""

import pytest

from rayfl.errors import ConfigError
from rayfl.federation.specs import UnitsPerRound
from rayfl.runtime.placement import ResourceRequest, place, room_on


def demand(actors=None, cpus=None, gpus=None, autoscale_timeout_s=0.0):
    return ResourceRequest(
        num_actors=actors,
        cpus_per_actor=cpus,
        gpus_per_actor=gpus,
        autoscale_timeout_s=autoscale_timeout_s,
    )


def test_auto_takes_what_fits_and_has_work(ray_session):
    assert place(demand(), units_per_round=UnitsPerRound(10, 10)).actors == 3
    assert place(demand(), units_per_round=UnitsPerRound(2, 2)).actors == 2
    assert place(demand(cpus=1.5), units_per_round=UnitsPerRound(10, 10)).actors == 2


def test_more_actors_than_cpus_share_them(ray_session):
    assert place(demand(actors=3), UnitsPerRound(10, 10)).cpus == 1
    assert place(demand(actors=4), UnitsPerRound(10, 10)).cpus == 0.5
    assert place(demand(actors=12), UnitsPerRound(10, 10)).cpus == 0.25


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (demand(actors=13), r"num_actors = 13: 13 client actors with 0.25 CPU each do not fit"),
        (demand(cpus=4.0), r"num_actors = 'auto': 1 client actors with 4 CPU each do not fit"),
        (demand(gpus=0.5), r"with 0.25 CPU and 0.5 GPU each do not fit.*\[3 CPU, 0 GPU\]"),
    ],
)
def test_what_does_not_fit_is_an_error_at_once(wanted, message, ray_session):
    with pytest.raises(ConfigError, match=message):
        place(wanted, units_per_round=UnitsPerRound(10, 10))


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "expected"),
    [
        ({"CPU": 8.0, "GPU": 1.0}, 1.0, 0.25, 4),
        ({"CPU": 2.0, "GPU": 1.0}, 1.0, 0.25, 2),
        ({"CPU": 16.0, "GPU": 2.0}, 1.0, 0.4, 4),  # what is left of each GPU is lost
        ({"CPU": 16.0}, 1.0, 0.1, 0),
        ({"CPU": 1.0}, 0.1, 0.0, 10),
    ],
)
def test_slots_of_a_node(node, cpus, gpus, expected):
    assert room_on(node, cpus, gpus) == expected


def test_without_a_time_to_wait_the_error_says_how_to_wait(ray_session):
    with pytest.raises(ConfigError, match=r"autoscaler: resources\.autoscale_timeout_s\)"):
        place(demand(actors=20), UnitsPerRound(10, 10))


def test_what_does_not_fit_may_wait_for_nodes(ray_session):
    placement = place(demand(actors=20, gpus=0.5, autoscale_timeout_s=60.0), UnitsPerRound(10, 10))
    assert (placement.actors, placement.cpus, placement.gpus) == (20, 1, 0.5)
    assert "on nodes that the cluster has to add (waiting up to 60 s)" in str(placement)


def test_what_fits_takes_the_nodes_there_are(ray_session):
    assert place(demand(actors=3, autoscale_timeout_s=60.0), UnitsPerRound(10, 10)).nodes == 1
    assert place(demand(autoscale_timeout_s=60.0), UnitsPerRound(10, 10)).actors == 3


def test_a_new_node_is_better_than_a_part_of_a_cpu(ray_session):
    placement = place(demand(actors=4, autoscale_timeout_s=60.0), UnitsPerRound(10, 10))
    assert (placement.cpus, placement.nodes) == (1, 0)


def test_only_a_number_of_actors_can_wait(ray_session):
    with pytest.raises(ConfigError, match=r"resources\.num_actors must be a number"):
        place(demand(cpus=4.0, autoscale_timeout_s=60.0), UnitsPerRound(10, 10))
