"""Every command on docs/cluster.md is one that ray_up.sh runs on its hosts."""

import re

from conftest import ROOT

PAGE = (ROOT / "docs/cluster.md").read_text()
SCRIPT = (ROOT / "tests/cluster/ray_up.sh").read_text().replace("\\", "")
RUN = re.compile(r"ray exec \$CLUSTER 'cd ~/rayfl && rayfl run configs/quickstart.yaml (.*)'")
SUBMIT = re.compile(r"ray submit \$CLUSTER clusters/run.py sweep configs/sweeps/\S+ (.*)")
WHICH = "export CLUSTER=cluster.yaml"  # the script's is clusters/onprem.yaml


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_every_command_is_run_by_the_script():
    assert len(commands()) >= 10
    for command in commands():
        if found := RUN.fullmatch(command):
            # Which run is the test's choice; where it runs and is recorded are the page's.
            assert {"ray.address=auto", "tracking.uri=http://127.0.0.1:5000"} <= {*found[1].split()}
            assert "ray exec $CLUSTER 'cd ~/rayfl && $command'" in SCRIPT
        elif found := SUBMIT.fullmatch(command):
            given = {"base.ray.address=auto", "base.tracking.uri=http://127.0.0.1:5000"}
            assert given <= {*found[1].split()}
            assert "ray submit $CLUSTER clusters/run.py $submitted" in SCRIPT
        elif command != WHICH:
            assert command in SCRIPT, command


def test_what_was_not_run_says_so():
    assert "need an account and have not been run" in PAGE.replace("*", "").replace("\n", " ")
