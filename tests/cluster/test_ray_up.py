"""The real `ray up` on three hosts of one machine (see ray_up.sh): up, a run, its record, up again, down."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

RUN = "run configs/quickstart.yaml federation.rounds=5 --json"
ON_CLUSTER = "ray.address=auto tracking.uri=http://127.0.0.1:5000 resources.num_actors=5"


def last_object(text):
    found = re.findall(r"^.*?(\{\"accuracy.*\})\s*$", text, re.MULTILINE)
    return json.loads(found[-1])


def test_a_run_on_a_cluster_of_three_machines(script, tmp_path):
    done = script(
        "ray_up.sh",
        f"rayfl {RUN} {ON_CLUSTER}",
        needs=("/usr/sbin/sshd", "ssh", "ssh-keygen", "rsync"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = last_object(done.stdout)
    assert f"recorded: {result['run_id']}" in done.stdout
    assert "5 client actors with " in done.stdout
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert "rayfl-" not in namespaces
    rayfl = Path(sys.executable).parent / "rayfl"
    local = f"{rayfl} {RUN.replace('configs/', f'{ROOT}/configs/')} tracking.enabled=false"
    alone = subprocess.run(
        local.split(), cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert last_object(alone)["model_sha256"] == result["model_sha256"]
