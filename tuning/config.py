"""Sweep files: YAML and dotted overrides -> a frozen `Sweep`.

    name: rho_momentum_alpha
    base: ../quickstart.yaml                    # or an experiment, inline, which may have `extends`
    space:
      algorithm.rho: {grid: [0.05, 0.1]}        # any dotted key of the experiment
    seeds: [0, 1, 2]

Overrides follow the file's own keys: `space.algorithm.rho.grid=[0.05,0.1]`, `base.federation.rounds=10`,
`scheduler.name=asha`.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from rayfl.analysis.metrics import higher_is_better
from rayfl.config import layers, shipped
from rayfl.config.choice import Choice
from rayfl.config.layers import Layer
from rayfl.config.messages import config_error
from rayfl.config.named import NAMED
from rayfl.config.schema import Experiment, load_config
from rayfl.config.sections import Section
from rayfl.config.values import to_yaml
from rayfl.errors import ConfigError
from tuning.schedulers import SCHEDULERS, Scheduler
from tuning.searchers import SEARCHES, Search
from tuning.space import KINDS, Axis, Point, check, dotted

# `search: random` stands for `search: {name: random}`.
_NAME_ALONE = re.compile(r"^(search|scheduler)=(\w+)$")

SEARCH = Choice("search", SEARCHES, Search)
SCHEDULER = Choice("scheduler", SCHEDULERS, Scheduler)
_NAMED = {
    **{choice.section: choice.has for choice in (SEARCH, SCHEDULER)},
    **{f"base.{section}": has for section, has in NAMED.items()},
}


class Plateau(Section):
    """Rule that ends a trial without progress."""

    rounds: int = Field(gt=0)
    """rounds without a better metric"""
    min_change: float = Field(default=0.0, ge=0)
    """what counts as better"""


class Stop(Section):
    """Rules that end a trial before its last round. The first rule that holds ends it."""

    rounds: int | None = Field(default=None, gt=0)
    """after so many rounds"""
    accuracy: float | None = Field(default=None, gt=0, le=1)
    """once validation/accuracy is there, or test/accuracy where nothing is held out"""
    seconds: float | None = Field(default=None, gt=0)
    """of training, its rounds added up"""
    plateau: Plateau | None = None
    """without progress of the metric"""


class Sweep(Section):
    """Set of experiments: the points of a space, each with every seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """letters, digits, '.', '_', '-'"""
    base: Layer
    """an experiment: a config file's path, or inline"""
    space: dict[str, Axis] = Field(min_length=1)
    """dotted key of the experiment: its axis"""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    """every point runs with each of them"""
    search: Annotated[Search, SEARCH] = SEARCHES["grid"]()
    scheduler: Annotated[Scheduler, SCHEDULER] = SCHEDULERS["none"]()
    stop: Stop = Stop()
    metric: str = Field(default="test/accuracy", min_length=1)
    """a round's metric, by which trials are compared; validation/accuracy if data.validation is set"""
    mode: Literal["max", "min"] = "max"
    """of the metric; max for accuracies, min for others, unless the file says otherwise"""
    max_concurrent: int | None = Field(default=None, gt=0)
    """trials at once; null: as many as fit"""
    max_failures: int = Field(default=3, ge=0)
    """how often a trial goes on after a process or node died"""
    keep_checkpoints: bool = False
    """of trials that have ended, which `rayfl flatness` measures, and their models in MLflow"""
    storage: str | None = None
    """directory or URI for checkpoints and logs; null: sweeps/<name>"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check(self.space)
        if len(set(self.seeds)) < len(self.seeds):
            different = "different from each other"
            raise ConfigError(key="seeds", value=list(self.seeds), allowed=different)
        most, seeds = self.max_concurrent, len(self.seeds)
        if self.scheduler.decides_on_points and most is not None and most < seeds:
            raise ConfigError(
                "the scheduler decides on a point once all its seeds have got to a round",
                key="max_concurrent",
                value=most,
                allowed=f"at least {seeds}, the number of seeds, or null",
            )
        self.search.check(self.space)
        self.scheduler.check(self.space, self.search)
        return self

    @property
    def directory(self) -> str:
        """Location of Ray Tune's files: a URI or an absolute path."""
        given = self.storage or f"sweeps/{self.name}"
        return given if "://" in given else str(Path(os.path.expanduser(given)).absolute())

    @property
    def rules(self) -> dict[str, Any]:
        """Settings that may end a trial before its last round."""
        return self.model_dump(mode="json", include={"scheduler", "stop", "metric", "mode"})

    def to_yaml(self) -> str:
        """Return the resolved sweep as a file that gives it again."""
        return to_yaml(self.model_dump(mode="json", exclude_none=True))

    def rounds(self, experiment: Experiment) -> int:
        """Return the largest number of rounds that a trial of this experiment runs."""
        return min(experiment.federation.rounds, self.stop.rounds or experiment.federation.rounds)

    def experiment(self, point: Point, seed: int) -> Experiment:
        """Return the experiment at a point; ConfigError if there is none."""
        experiment = load_config(self.raw(point, seed))
        if self.keep_checkpoints and experiment.checkpoint.every is None:
            allowed = "a number or auto, or keep_checkpoints false"
            raise ConfigError(key="checkpoint.every", value=None, allowed=allowed)
        if experiment.tracking.log_model and experiment.checkpoint.every is None:
            raise ConfigError(
                "the model of a trial comes to MLflow from where its checkpoints are",
                key="checkpoint.every",
                value=None,
                hint="set it to auto, or tracking.log_model to null",
                keys=("tracking.log_model",),
            )
        return experiment

    def logs_model(self, experiment: Experiment) -> bool:
        """Return whether MLflow gets the final model of this trial."""
        asked = experiment.tracking.log_model
        return self.keep_checkpoints if asked is None else asked

    def key(self, key: str) -> str:
        """Return the key of an experiment as the sweep's file has it; a key of the sweep itself stays."""
        if not key or key.partition(".")[0] in Sweep.model_fields:
            return key
        is_axis = any(f"{key}.".startswith(f"{axis}.") for axis in self.space)
        return f"{'space' if is_axis else 'base'}.{key}"

    def raw(self, point: Point, seed: int) -> Layer:
        """Return the unchecked experiment of a point."""
        return layers.merge(self.base, layers.nested(point), NAMED) | {"seed": seed}


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Return the sweep of a YAML file or a shipped config's name, with `section.key=value` overrides.

    Raises ConfigError: one line that names the dotted key, the value and what is allowed.
    """
    path = shipped.find(path)
    content = layers.read(path, _NAMED)
    given = layers.parse_overrides([_NAME_ALONE.sub(r"\1.name=\2", text) for text in overrides])
    if isinstance(given.get("base"), str):  # another file, relative to the working directory
        content["base"] = layers.read(shipped.find(given.pop("base")), NAMED)
    elif isinstance(content.get("base"), str):
        content["base"] = layers.read(shipped.find(content["base"], path.parent), NAMED)
    elif isinstance(content.get("base"), dict):
        content["base"] = layers.extended(content["base"], path, NAMED)
    for section in ("search", "scheduler"):
        if isinstance(content.get(section), str):
            content[section] = {"name": content[section]}
    for source in (content, given):
        if isinstance(source.get("space"), dict):
            source["space"] = dotted(source["space"])
    for key, axis in given.get("space", {}).items():
        old = content.get("space", {}).get(key)
        if isinstance(old, dict) and set(axis) & set(KINDS):  # the new kind of values replaces it
            content["space"][key] = {k: v for k, v in old.items() if k not in KINDS}
    merged = {"name": path.stem, **layers.merge(content, given, _NAMED)}
    if holds_out(merged.get("base")) or "data.validation" in (merged.get("space") or ()):
        merged = {"metric": "validation/accuracy", **merged}
    if isinstance(named := merged.get("metric"), str):
        # As tables mark the best: a loss, or a flatness, is better where it is lower.
        merged = {"mode": "max" if higher_is_better(named) else "min", **merged}
    try:
        return Sweep.model_validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        raise config_error(error, Sweep) from None


def holds_out(experiment: Any) -> bool:
    """Return whether this experiment, which is not checked yet, has samples to validate with."""
    data = experiment.get("data") if isinstance(experiment, dict) else None
    return isinstance(data, dict) and data.get("validation") is not None
