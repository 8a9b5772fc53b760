"""Capacity of the cluster: the client actors that fit now, and after `ray up` has added its nodes."""

import os
from dataclasses import replace
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rayfl.config.sections import Resources
from rayfl.errors import ConfigError
from rayfl.federation.specs import UnitsPerRound
from rayfl.launch import resource_request
from rayfl.runtime.placement import Placement, place, room_on

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""File that `ray up` leaves on the head node."""


def capacity(resources: Resources, cluster_file: Path | None) -> tuple[Placement, int | None]:
    """Return the client actors that fit now, and the number that fits on the full cluster (None: unknown).

    Raises ConfigError if none fits now, unless nodes will be added: the cluster file allows for more, or
    `resources.autoscale_timeout_s` is set.
    """
    any_number = resource_request(resources.model_copy(update={"num_actors": "auto"}))
    try:
        now = place(any_number, UnitsPerRound(10**6, 10**6))
    except ConfigError:
        one = replace(any_number, num_actors=1, autoscale_timeout_s=1.0)
        now = replace(place(one, UnitsPerRound(1, 1)), actors=0)
        maximum = _grown(now, cluster_file)
        if maximum or (resources.autoscale_timeout_s and resources.num_actors != "auto"):
            return now, maximum
        raise
    return now, _grown(now, cluster_file)


def _grown(now: Placement, cluster_file: Path | None) -> int | None:
    """Return the number of client actors that fit on all nodes that the file of `ray up` allows."""
    path = cluster_file or Path(os.path.expanduser(BOOTSTRAP))
    if cluster_file is None and not path.exists():
        return None
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text())
        types = content["available_node_types"]
        most = content.get("max_workers", 0)
        head = content["head_node_type"]
        fits = {
            name: room_on({k: float(v) for k, v in t["resources"].items()}, now.cpus, now.gpus)
            for name, t in types.items()
        }
    except (OSError, YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        if cluster_file is None:
            return None
        raise ConfigError(
            f"--cluster = '{path}': must be a file of `ray up` whose node types say their resources "
            f"({type(error).__name__}: {error})"
        ) from error
    total, left = fits[head], most
    for name in sorted(fits, key=lambda name: -fits[name]):  # the largest type first
        workers = min(types[name].get("max_workers", most if name != head else 0), left)
        total, left = total + workers * fits[name], left - workers
    return total
