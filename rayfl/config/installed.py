"""Parts that installed packages offer by name, as entry points."""

import functools
from collections.abc import Mapping
from importlib.metadata import entry_points

from rayfl.config.layers import say_once
from rayfl.text import printable

GROUPS = {
    "algorithm": "rayfl.algorithms",
    "data": "rayfl.data",
    "model": "rayfl.models",
    "partition": "rayfl.partitions",
}
"""Group of the entry points for each section of a config."""


@functools.cache  # to look through all packages takes tens of milliseconds
def offered(section: str, taken: frozenset[str]) -> Mapping[str, str]:
    """Return the import path of each part for a section of a config by its name; none is imported.

    A name that is `taken`, or that another package has, is left out with a warning.
    """
    found: dict[str, str] = {}
    if section not in GROUPS:
        return found
    for entry in sorted(
        entry_points(group=GROUPS[section]), key=lambda entry: (entry.name, entry.value)
    ):
        path = f"{entry.module}:{entry.attr}"
        if entry.name in taken or found.get(entry.name, path) != path:
            stays = found.get(entry.name, "rayfl's own")
            say_once(
                f"{section}.name={printable(entry.name)} is {stays}; {printable(path)}, which an installed "
                "package offers by the same name, is to be had by its import path"
            )
        else:
            found[entry.name] = path
    return found
