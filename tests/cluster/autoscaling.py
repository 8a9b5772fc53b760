"""Run by test_autoscaling.py, in namespaces: an experiment, then a sweep, on a cluster without workers.

Prints one JSON object: the models' hashes, and how many nodes lived before, during and after each. Ray's
fake provider starts a Ray node for each machine.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import FAKE_HEAD_NODE_ID, AutoscalingCluster

from rayfl import load_config, run
from rayfl.errors import ConfigError

FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD = "ray.head.default"  # the name that the fake provider gives to its head
WORKERS = 2


class FakeCloud(AutoscalingCluster):
    """The base class reads its config from a file that Ray's wheel lacks."""

    def _generate_config(self, head_resources, worker_node_types, autoscaler_v2=False, **config):
        return {
            "cluster_name": "fake",
            "max_workers": WORKERS,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "external",
                "module": FAKE,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "upscaling_speed": 1.0,
            "available_node_types": worker_node_types
            | {HEAD: {"resources": head_resources, "node_config": {}, "max_workers": 0}},
            "head_node_type": HEAD,
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
            **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
            "initialization_commands": [],
            "file_mounts_sync_continuously": False,
        }


def nodes():
    return sum(node["Alive"] for node in ray.nodes())


def main(config_file, sweep_file):
    subprocess.run(["ray", "get-auth-token", "--generate"], check=True, capture_output=True)
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": WORKERS}
    cloud = FakeCloud({"CPU": 0}, {"worker": worker}, autoscaler_v2=True)
    cloud.start()
    ray.init(address="auto", log_to_driver=False)  # which `run` uses: seen from one connection
    result = {"before": nodes()} | experiment(config_file)
    result |= {"between": shrunk()} | sweep(sweep_file)
    result |= {"after": shrunk()}
    ray.shutdown()
    cloud.shutdown()
    print(json.dumps(result))


def experiment(file):
    on_cluster = [f"resources.num_actors={WORKERS}", "ray.address=auto"]
    refused = None
    try:
        run(load_config(file, on_cluster))
    except ConfigError as error:
        refused = str(error)
    began, during = time.monotonic(), []
    waiting = load_config(file, [*on_cluster, "resources.autoscale_timeout_s=120"])
    done = run(
        waiting, on_metrics=lambda record: during.append((nodes(), time.monotonic() - began))
    )
    return {
        "without waiting": refused,
        "cluster": done.model_sha256,
        "during": max(n for n, _ in during),
        "first_round_s": during[0][1],
        "run_s": time.monotonic() - began,
    }


def sweep(file):
    """By the command, as a user would; trials of one client actor each."""
    command = [Path(sys.executable).parent / "rayfl", "sweep", file, "--json"]
    on_cluster = [f"base.{key}" for key in ("ray.address=auto", "resources.num_actors=1")]
    began, most = time.monotonic(), 0
    process = subprocess.Popen(
        [*command, *on_cluster, "base.resources.autoscale_timeout_s=120"],
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        most = max(most, nodes())
        time.sleep(0.5)
    return {
        "sweep": json.loads(process.stdout.read()),
        "sweep_during": most,
        "sweep_s": time.monotonic() - began,
    }


def shrunk():
    """Nodes that are left once the idle ones have gone, and after how many seconds that was."""
    began = time.monotonic()
    while nodes() > 1 and time.monotonic() - began < 90:
        time.sleep(1)
    return nodes(), time.monotonic() - began


if __name__ == "__main__":
    main(*sys.argv[1:])
