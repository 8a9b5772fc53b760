"""A cluster without workers grows for an experiment, shrinks, and grows for a sweep (see autoscaling.py)."""

import json
import sys
from pathlib import Path

import pytest
from local_pool import undisturbed

from rayfl import load_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_work_brings_nodes_up_from_none_and_leaves_none(script, small, sweep_file):
    sweep = sweep_file(seeds=[0, 1])
    config = sweep.with_name("small.yaml")
    config.write_text(json.dumps(small))
    program = Path(__file__).with_name("autoscaling.py")
    done = script("isolated.sh", sys.executable, program, config, sweep)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["before"], result["during"], result["between"][0]) == (1, 3, 1), result
    assert (result["sweep_during"], result["after"][0]) == (3, 1), result
    assert "do not fit" in result["without waiting"]
    assert result["cluster"] == undisturbed(load_config(small))
    trials = result["sweep"]["trials"]
    assert [trial["state"] for trial in trials] == ["finished"] * 4
    for trial in trials:
        axes = [f"{key}={value}" for key, value in trial["point"].items()]
        one = load_config(small, [*axes, f"seed={trial['seed']}"])
        assert trial["model_sha256"] == undisturbed(one)
