"""The real `ray up` on three hosts of one machine (see ray_up.sh): up, a run, its record, up again, down."""

import json
import re
import subprocess

import pytest
from conftest import ROOT
from local_pool import undisturbed

from rayfl import load_config
from tuning.config import load_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN = "run configs/quickstart.yaml federation.rounds=5 --json"
ON_CLUSTER = "ray.address=auto tracking.uri=http://127.0.0.1:5000 resources.num_actors=5"
SWEEP = (
    "sweep configs/sweeps/rho_beta_alpha.yaml --json base.federation.rounds=5 seeds=[0] "
    "space.algorithm.alpha.grid=[0.1]"
)
SWEEP_ON_CLUSTER = "base.ray.address=auto base.tracking.uri=http://127.0.0.1:5000"


def last_object(text, key):
    """The last JSON object of a command's output, which begins with this key."""
    found = re.findall(rf"^.*?(\{{\"{key}.*\}})\s*$", text, re.MULTILINE)
    return json.loads(found[-1])


def test_a_run_and_a_sweep_on_a_cluster_of_three_machines(script):
    done = script(
        "ray_up.sh",
        f"rayfl {RUN} {ON_CLUSTER}",
        f"{SWEEP} {SWEEP_ON_CLUSTER}",
        needs=("/usr/sbin/sshd", "ssh", "ssh-keygen", "rsync"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert "rayfl-" not in namespaces
    recorded = set(re.findall(r"^recorded: (\w+) (\w+) (\w+)", done.stdout, re.MULTILINE))

    result = last_object(done.stdout, "accuracy")
    assert "5 client actors with " in done.stdout
    digest = undisturbed(load_config(ROOT / "configs/quickstart.yaml", ["federation.rounds=5"]))
    assert result["model_sha256"] == digest
    assert (result["run_id"], "FINISHED", digest) in recorded

    trials = last_object(done.stdout, "sweep")["trials"]
    assert len(trials) == 4
    sweep = load_sweep(ROOT / "configs/sweeps/rho_beta_alpha.yaml", ["base.federation.rounds=5"])
    for trial in trials:
        assert (trial["run_id"], "FINISHED", trial["model_sha256"]) in recorded
        one = sweep.experiment(trial["point"], trial["seed"])
        assert trial["model_sha256"] == undisturbed(one)
    assert len(recorded) == 5
