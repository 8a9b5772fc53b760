"""A cluster without workers grows for an experiment, and shrinks again (see autoscaling.py)."""

import json
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_an_experiment_brings_nodes_up_from_none_and_leaves_none(script, small, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps(small))
    program = Path(__file__).with_name("autoscaling.py")
    done = script("isolated.sh", sys.executable, program, config)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["before"], result["during"], result["after"]) == (1, 3, 1), result
    assert "do not fit" in result["without waiting"]
    assert result["cluster"] == result["alone"]
