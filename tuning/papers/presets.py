"""Presets: the settings behind papers' tables as sweeps, and the numbers that the papers report.

    configs/paper/NAME.yaml        the sweep, in the setting of the paper's text
    configs/released/NAME.yaml     the sweep, in the setting of the scripts that were released with the paper
    configs/small/NAME.yaml        the same axes on a setting that a laptop finishes in minutes; it extends
                                   its namesake, and differs from it in `name` and `base` alone
    configs/published/NAME.yaml    a `Published`: the paper's numbers, and what is not known of them

Sweeps stay plain files of `rayfl sweep`; all scales share the published numbers. A preset exists if its
published file does. What several files have in common is in one whose name begins with base.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from rayfl.analysis import filters
from rayfl.analysis.metrics import metric
from rayfl.analysis.naming import shown as cell
from rayfl.config import layers, shipped
from rayfl.config.messages import config_error
from rayfl.config.sections import Section
from rayfl.errors import ConfigError
from rayfl.text import nearest, shown
from tuning.config import Sweep, load_sweep
from tuning.space import Axis, Point, matches, points

Scale = Literal["small", "full", "released"]

_FOLDERS: dict[Scale, str] = {"small": "small", "full": "paper", "released": "released"}


class PublishedValue(Section):
    """One published number."""

    at: dict[str, Any]
    """key of an axis: its value; a list stands for the best of these"""
    value: float | None
    """null: printed as not reached"""
    metric: str | None = None
    """null: the file's"""
    note: str = ""

    def covers(self, point: Point) -> bool:
        """Return True if the number is about this point."""
        return matches(point, self.at)


class Published(Section):
    """The numbers of a table or figure."""

    about: str
    """one line"""
    source: str
    metric: str
    """of the values, as in `rayfl results`"""
    notes: tuple[str, ...] = ()
    """what is not known of them"""
    settings: dict[Scale, tuple[str, ...]] = {}  # noqa: RUF012 (a pydantic default, copied for each)
    """what each scale follows, and where it cannot"""
    values: tuple[PublishedValue, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A paper's table or figure at one scale, ready to run."""

    name: str
    scale: Scale
    sweep: Sweep
    published: Published


def names() -> list[str]:
    """Return the names of all presets; ConfigError if rayfl lies somewhere without its configs."""
    folder = shipped.folder() / "published"
    if not folder.is_dir():
        raise ConfigError(f"presets: there is no directory {folder}; install rayfl again")
    files = (p for p in folder.rglob("*.yaml") if not p.stem.startswith("base"))
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in files)


def scales(name: str) -> list[Scale]:
    """List the scales of a preset."""
    return [
        s
        for s, folder in _FOLDERS.items()
        if (shipped.folder() / folder / f"{name}.yaml").is_file()
    ]


def load(
    name: str, scale: Scale = "small", overrides: Sequence[str] = (), only: str | None = None
) -> Preset:
    """Load a preset with overrides of its sweep; the filter `only` restricts the values of its axes."""
    known = names()
    if "=" in name:
        raise ConfigError(f"{shown(name)}: the preset's name comes first, then the overrides")
    if name not in known:
        raise ConfigError(
            f"preset {shown(name)}: there is none{nearest(name, known)}; known: {', '.join(known)}"
        )
    if scale not in scales(name):
        raise ConfigError(f"--scale = {scale}: {name} has only the scale {', '.join(scales(name))}")
    sweep = load_sweep(shipped.folder() / _FOLDERS[scale] / f"{name}.yaml", overrides)
    published = _published(name)
    return Preset(name, scale, restricted(sweep, only) if only else sweep, published)


def restricted(sweep: Sweep, only: str) -> Sweep:
    """Restrict the axes of a sweep to the values that a filter selects."""
    space = dict(sweep.space)
    for condition in filters.parse(only):
        key = condition.key
        if key not in space or not space[key].is_grid:
            raise ConfigError(
                f"--only: {key} is no grid axis of {sweep.name}{nearest(key, space)}; "
                f"there are: {', '.join(k for k, axis in space.items() if axis.is_grid)}"
            )
        kept = tuple(v for v in space[key].values() if condition.holds(v))
        if not kept:
            values = ", ".join(map(cell, space[key].values()))
            raise ConfigError(f"--only = {shown(only)}: selects no value of {key}: {values}")
        space[key] = Axis(grid=kept, when=space[key].when)
    return sweep.model_copy(update={"space": space})


def size(sweep: Sweep) -> tuple[int, int, int]:
    """Count the trials, the rounds of the longest one, and the client updates of all of them."""
    experiments = [sweep.experiment(p, sweep.seeds[0]) for p in points(sweep.space, None, 0)]
    seeds = len(sweep.seeds)
    updates = sum(e.federation.rounds * e.federation.cohort_size for e in experiments)
    rounds = max(e.federation.rounds for e in experiments)
    return len(experiments) * seeds, rounds, updates * seeds


def _published(name: str) -> Published:
    path = shipped.folder() / "published" / f"{name}.yaml"
    try:
        published = Published.model_validate_json(json.dumps(layers.read(path, {})), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{path}: {config_error(error, Published)}") from None
    for value in published.values:
        metric(value.metric or published.metric)
    return published
