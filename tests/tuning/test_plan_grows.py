"""A sweep on a cluster whose nodes are still to come."""

import pytest

from rayfl.errors import ConfigError
from rayfl.inputs import Inputs
from tuning import plan as planning
from tuning.config import load_sweep

HEAD = {"Alive": True, "Resources": {"node:10.0.0.1": 1.0}}
GROWS = """
max_workers: 3
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}}
  worker: {resources: {CPU: 2}, max_workers: 3}
"""


def plan(sweep_file, *overrides, file=None):
    sweep = load_sweep(sweep_file(seeds=[0, 1]), ["base.ray.address=auto", *overrides])
    inputs = Inputs()
    found = [
        planning.checked(sweep, trial, inputs)
        for trial in planning.trials(sweep, sweep.search.points(sweep.space))
    ]
    return planning.allocate(sweep, found, inputs, file)


@pytest.fixture(autouse=True)
def a_head_alone(monkeypatch):
    monkeypatch.setattr("rayfl.runtime.placement.ray.nodes", lambda: [HEAD])


def test_the_clusters_file_says_how_far_it_grows(sweep_file, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(GROWS)
    planned = plan(sweep_file, file=file)
    assert (planned.at_once, planned.at_once_grown) == (0, 4)
    assert planned.placement.bundle == {"CPU": 1.0}


def test_or_somebody_waits_for_a_number_of_actors(sweep_file):
    planned = plan(
        sweep_file, "base.resources.num_actors=3", "base.resources.autoscale_timeout_s=60"
    )
    assert (planned.placement.actors, planned.at_once) == (3, 0)


@pytest.mark.parametrize("override", ["seeds=[0]", "base.resources.num_actors=3"])
def test_otherwise_what_has_no_room_is_an_error(override, sweep_file):
    with pytest.raises(ConfigError, match=r"do not fit.*nodes have \[0 CPU, 0 GPU\], room for 0"):
        plan(sweep_file, override)
