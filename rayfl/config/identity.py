"""The identity of an experiment: the keys of its config that its result depends on.

The only place that says which: the config's hash, the axes of a sweep and the tables of results ask here.
It imports nothing that takes time, for `rayfl results` starts with it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FREE_SECTIONS = (
    *("resources", "ray", "tracking", "checkpoint"),
    *("evaluation", "diagnostics", "callbacks"),
)
"""Sections that change no result: the place of a run, its records, and what is measured of its models."""

PLACES = ("data.root", "data.download", "model.download")
"""Keys that say where published data and weights lie, or come from."""

TASK = ("data.", "partition.", "heterogeneity.", "federation.clients.")
"""Prefixes of the keys that make the task, which methods are compared on."""

_CAME_LATER: Mapping[str, Any] = {
    "data.layout": None,
    "data.validation": None,
    "federation.loss": None,
    "federation.lr_warmup": 0,
    "federation.momentum": 0.0,
    "federation.nesterov": False,
    "federation.weighting": "uniform",
    "model.init": None,
    "privacy": None,
}
"""Options that came later: this value means what held before there was a choice."""
_NEVER = object()


def is_identity(key: str) -> bool:
    """Return whether a result depends on this dotted key."""
    return key.partition(".")[0] not in FREE_SECTIONS and key not in PLACES


def is_task(key: str) -> bool:
    """Return whether this dotted key changes the task rather than the method."""
    return f"{key}.".startswith(TASK)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved config, nested or with dotted keys, that its result depends on."""
    return _kept(config, "")


def config_hash(identity: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the identity's SHA-256."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _kept(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if is_identity(key) and value != _CAME_LATER.get(key, _NEVER):
            kept[name] = _kept(value, f"{key}.") if isinstance(value, Mapping) else value
    return kept
