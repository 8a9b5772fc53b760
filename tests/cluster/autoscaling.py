"""Run by test_autoscaling.py, in namespaces: an experiment on a cluster that has no worker yet.

Prints one JSON object: the model's hash of a run on a Ray of its own and of the run on the cluster, and
how many nodes lived before, during and after. Ray's fake provider starts a Ray node for each machine.
"""

import json
import sys
import time

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


def main(config_file):
    config = load_config(config_file)
    result = {"alone": run(config).model_sha256}
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": WORKERS}
    cloud = FakeCloud({"CPU": 0}, {"worker": worker}, autoscaler_v2=True)
    cloud.start()
    ray.init(address="auto", log_to_driver=False)  # which `run` uses: seen from one connection
    result["before"] = nodes()

    on_cluster = [f"resources.num_actors={WORKERS}", "ray.address=auto"]
    try:
        run(load_config(config_file, on_cluster))
    except ConfigError as error:
        result["without waiting"] = str(error)

    began, during = time.monotonic(), []
    waiting = load_config(config_file, [*on_cluster, "resources.wait_s=120"])
    done = run(waiting, on_record=lambda record: during.append((nodes(), time.monotonic() - began)))
    result |= {"cluster": done.model_sha256, "during": max(n for n, _ in during)}
    result |= {"first_round_s": during[0][1], "run_s": time.monotonic() - began}

    began = time.monotonic()
    while nodes() > 1 and time.monotonic() - began < 90:
        time.sleep(1)
    result |= {"after": nodes(), "shrink_s": time.monotonic() - began}
    ray.shutdown()
    cloud.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
