"""Addresses where a local run listens, on a machine with a network: those of docs/cluster.md."""

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
NETWORK = """
ip link add eth0 type veth peer name eth1
ip addr add 10.78.0.1/24 dev eth0
ip link set eth0 up; ip link set eth1 up
ip route add default dev eth0
"""


@pytest.mark.parametrize(
    ("setting", "loopback"), [("", True), ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1", False)]
)
def test_a_run_of_its_own_keeps_to_this_machine(setting, loopback, script, small, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps(small))
    program = Path(__file__).with_name("listening.py")
    command = f"{NETWORK} {setting} {sys.executable} {program} {config}"
    done = script("isolated.sh", "bash", "-c", command, needs=["ss"])
    assert done.returncode == 0, done.stderr
    addresses = json.loads(done.stdout.splitlines()[-1])
    here = {"127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"}
    assert (set(addresses) <= here) is loopback, addresses
