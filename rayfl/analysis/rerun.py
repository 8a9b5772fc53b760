"""Commands that repeat the experiments of a set of runs: one base config, and overrides for each."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import pandas as pd

from rayfl.analysis.runs import canonical, is_config_key
from rayfl.config import layers
from rayfl.config.identity import PLACES
from rayfl.config.values import to_yaml
from rayfl.errors import ConfigError

BASE = "base.yaml"


class RerunCommands:
    """A base config that all runs of a set share, and the command of each run."""

    def __init__(self, runs: pd.DataFrame):
        # The places are no part of an experiment's identity, but it needs its files.
        keys = [key for key in runs.columns if is_config_key(key) or key in PLACES]
        self._configs: list[dict[str, Any]] = [
            {key: v for key, v in zip(keys, row, strict=True) if v is None or v == v}
            for row in runs[keys].itertuples(index=False, name=None)
        ]
        # An infeasible run has recorded only the keys that its sweep varies.
        most = max(map(len, self._configs)) / 2
        complete = [config for config in self._configs if len(config) > most]
        self.base = _common(complete)
        """Dotted key -> value, the same in all runs."""

    @property
    def base_yaml(self) -> str:
        """Config file that every command starts from."""
        return to_yaml(layers.nested({key: _listed(v) for key, v in self.base.items()}))

    def overrides(self, i: int) -> list[str]:
        """Return the `key=value` of run i of the set, the names of sections before their options."""
        different = {
            key: value
            for key, value in self._configs[i].items()
            if key not in self.base or canonical(self.base[key]) != canonical(value)
        }
        return [override(key, different[key]) for key in sorted(different, key=_names_first)]

    def command(self, i: int) -> str:
        """Return the command that repeats run i of the set."""
        return shlex.join(["rayfl", "run", BASE, *self.overrides(i)])


def override(key: str, value: Any) -> str:
    """Write `key=value` so that `rayfl run` reads exactly this value."""
    quoted = f"{key}={json.dumps(value)}"
    if not isinstance(value, str):
        return quoted
    plain = f"{key}={value}"
    try:
        same = layers.parse_overrides([plain]) == layers.parse_overrides([quoted])
    except ConfigError:
        return quoted
    return plain if same else quoted


def _common(configs: list[dict[str, Any]]) -> Mapping[str, Any]:
    first = configs[0]
    common = {
        key: value
        for key, value in first.items()
        if all(key in c and canonical(c[key]) == canonical(value) for c in configs)
    }
    # An override of a section's name must be followed by all of its options.
    renamed = tuple(
        key.removesuffix("name")
        for c in configs
        for key in c
        if key.endswith(".name") and key not in common
    )
    return {key: value for key, value in common.items() if not key.startswith(renamed)}


def _names_first(key: str) -> tuple[bool, str, bool, str]:
    section = key.partition(".")[0]
    return (key == "seed", section, key != f"{section}.name", key)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
