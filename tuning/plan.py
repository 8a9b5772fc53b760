"""What a sweep is going to do: its trials, the data that they need, and the resources of each.

All of it is found out and checked on the driver before any actor starts. A trial that cannot be has a
`problem` and is a row of its own in the end; the others run.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rayfl.config.schema import Experiment, Resources
from rayfl.data.datasets import Dataset
from rayfl.data.federated import federate
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError
from rayfl.launch import resource_request
from rayfl.prepare import prepare, storage
from rayfl.runtime.placement import Placement, place, room_on
from tuning.config import Sweep
from tuning.inputs import data_key, source_key
from tuning.schedulers import PBT
from tuning.space import Point, text

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its file on the head node."""


@dataclass(frozen=True)
class PlannedTrial:
    """One point with one seed."""

    point: Point
    seed: int
    hash: str
    """Its identity: that of the experiment."""
    experiment: Experiment | None
    problem: str | None = None
    """Why it cannot run."""

    @property
    def settings(self) -> str:
        """What tells it from the other trials of its sweep."""
        return f"{text(self.point)} seed={self.seed}".strip()

    def __str__(self) -> str:
        return f"{self.hash} ({self.settings})"


@dataclass(frozen=True)
class _Loaded:
    """A source that has been read: what `federate` asks of it."""

    dataset: Dataset

    def load(self) -> Dataset:
        return self.dataset


@dataclass
class Inputs:
    """The data of all trials, each dataset and each partition made once."""

    data: dict[str, tuple[Dataset, Partition]] = field(default_factory=dict)
    """By `data_key`."""
    _sources: dict[str, Dataset] = field(default_factory=dict)
    _units: dict[str, int] = field(default_factory=dict)
    _problems: dict[str, str] = field(default_factory=dict)

    def of(self, experiment: Experiment) -> tuple[Dataset, Partition]:
        return self.data[data_key(experiment)]

    def units(self, experiment: Experiment) -> int:
        """Work units of a round. Raises ConfigError if the experiment cannot be prepared."""
        # What an experiment is prepared from, but for its algorithm: checked once for all of its values.
        content = experiment.model_dump(
            mode="json",
            include={"data", "partition", "heterogeneity", "model", "federation", "seed"},
        )
        if ":" in experiment.algorithm_name:  # one's own method is checked, with its first values
            content["algorithm"] = experiment.algorithm_name
        for key in ("lr", "lr_schedule", "lr_decay", "weight_decay", "clip_norm"):
            content["federation"].pop(key)
        key = json.dumps(content, sort_keys=True)
        if key not in self._units:
            self._units[key] = prepare(
                experiment, *self._made(experiment)
            ).federation.units_per_round
        return self._units[key]

    def _made(self, experiment: Experiment) -> tuple[Dataset, Partition]:
        source: Any = self._once(self._sources, source_key(experiment), experiment.data.load)
        return self._once(
            self.data,
            data_key(experiment),
            lambda: federate(
                cast(Any, _Loaded(source)),
                experiment.partition,
                experiment.heterogeneity,
                experiment.federation.clients,
                experiment.seed,
            ),
        )

    def _once(self, made: dict[str, Any], key: str, make: Any) -> Any:
        if key in self._problems:  # reading again what is missing would take as long each time
            raise ConfigError(self._problems[key])
        if key not in made:
            try:
                made[key] = make()
            except ConfigError as error:
                self._problems[key] = str(error)
                raise
        return made[key]


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's trials and what each takes."""

    sweep: Sweep
    trials: tuple[PlannedTrial, ...]
    """None yet where a searcher suggests them."""
    count: int
    """Of the trials, with those that are suggested later."""
    inputs: Inputs
    placement: Placement
    room: int
    """Client actors that fit on the cluster as it is; 0: it has to grow."""
    maximum: int | None
    """Client actors that fit once the cluster has grown; None: nobody says."""
    unshared: str | None = None
    """Directory of checkpoints that is each node's own, where trials can run on several nodes."""
    unshared_storage: str | None = None
    """The same of the directory through which population-based training copies trials."""

    @property
    def feasible(self) -> list[PlannedTrial]:
        return [trial for trial in self.trials if trial.problem is None]

    @property
    def at_once(self) -> int:
        """Trials that run side by side on the cluster as it is."""
        return self._limited(self.room // self.placement.actors)

    @property
    def at_once_grown(self) -> int | None:
        """Trials that run side by side once the cluster has grown."""
        if self.maximum is None:
            return None
        return self._limited(max(self.maximum, self.room) // self.placement.actors)

    def _limited(self, count: int) -> int:
        return min(count, self.sweep.max_concurrent or count, max(self.count, 1))


def trials(sweep: Sweep, points: Iterable[Point]) -> list[PlannedTrial]:
    """Every point with every seed; points that give the same experiment count once."""
    found: dict[str, PlannedTrial] = {}
    for point in points:
        for seed in sweep.seeds:
            trial = resolve(sweep, point, seed)
            found.setdefault(trial.hash, trial)
    return list(found.values())


def resolve(sweep: Sweep, point: Point, seed: int) -> PlannedTrial:
    """The trial at a point; one that has a `problem` if there is no such experiment."""
    try:
        experiment = sweep.experiment(point, seed)
    except ConfigError as error:
        content = json.dumps(sweep.raw(point, seed), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        return PlannedTrial(point, seed, digest, None, sweep.worded(str(error)))
    clash = _clash(sweep, experiment)
    return PlannedTrial(point, seed, experiment.hash, experiment, clash and sweep.worded(clash))


def checked(sweep: Sweep, trial: PlannedTrial, inputs: Inputs) -> PlannedTrial:
    """The trial, with its data loaded; with a `problem` if that cannot be."""
    if trial.experiment is None or trial.problem is not None:
        return trial
    try:
        inputs.units(trial.experiment)
    except ConfigError as error:
        return replace(trial, problem=sweep.worded(str(error)))
    return trial


def check_any(found: list[PlannedTrial]) -> None:
    """ConfigError, with the first one's problem, if no trial can run."""
    if found and all(trial.problem for trial in found):
        raise ConfigError(f"none of the {len(found)} trials can run: {found[0].problem}")


def share(
    sweep: Sweep, found: list[PlannedTrial], inputs: Inputs, cluster_file: Path | None = None
) -> SweepPlan:
    """The plan for these trials on the connected cluster. Raises ConfigError if not one of them fits.

    Unless `resources.num_actors` says otherwise, a trial gets so many client actors that as many trials
    as can be run side by side: that uses a cluster better than more actors for each.
    """
    is_known = sweep.search.points(sweep.space) is not None
    count = sum(not t.problem for t in found)
    if not is_known:
        count = sweep.search.count(sweep.space) * len(sweep.seeds)
    feasible = [trial.experiment for trial in found if not trial.problem and trial.experiment]
    resources = feasible[0].resources
    units = max(inputs.units(experiment) for experiment in feasible)
    anyhow, maximum = _room(resources, cluster_file)
    if not anyhow.actors:  # nodes are to come: Ray Tune's demand for them stands until they do
        resources = resources.model_copy(
            update={"autoscale_timeout_s": resources.autoscale_timeout_s or 1.0}
        )
    actors = resources.num_actors
    if actors == "auto":
        actors = max(1, min(units, max(anyhow.actors, maximum or 0) // count))
    placement = place(resource_request(resources.model_copy(update={"num_actors": actors})), units)
    if placement.cpus < anyhow.cpus or placement.gpus != anyhow.gpus:
        given = resources.model_copy(
            update={"num_actors": "auto", "cpus_per_actor": placement.cpus}
        )
        anyhow, _ = _room(given, cluster_file)
    known = tuple(found) if is_known else ()
    is_several = anyhow.nodes > 1 or (maximum or 0) > anyhow.actors
    unshared = _local_checkpoints(feasible[0]) if is_several else None
    copies = is_several and isinstance(sweep.scheduler, PBT) and "://" not in sweep.directory
    copied = sweep.directory if copies else None
    return SweepPlan(
        sweep, known, count, inputs, placement, anyhow.actors, maximum, unshared, copied
    )


def _room(resources: Resources, cluster_file: Path | None) -> tuple[Placement, int | None]:
    """The client actors that fit now, and how many once the cluster has grown (None: nobody says).

    None of them need fit yet if nodes are to come: the cluster's file says so, or somebody waits for them.
    """
    any_number = resource_request(resources.model_copy(update={"num_actors": "auto"}))
    try:
        now = place(any_number, 10**6)
    except ConfigError:
        one = replace(any_number, num_actors=1, autoscale_timeout_s=1.0)
        now = replace(place(one, 1), actors=0)
        maximum = _grown(now, cluster_file)
        if maximum or (resources.autoscale_timeout_s and resources.num_actors != "auto"):
            return now, maximum
        raise
    return now, _grown(now, cluster_file)


def _local_checkpoints(experiment: Experiment) -> str | None:
    """The directory of its checkpoints; None if there are none, or they have a URI."""
    location = storage(experiment)
    return None if experiment.checkpoint.every is None or "://" in location else location


def _clash(sweep: Sweep, experiment: Experiment) -> str | None:
    """What keeps the scheduler from deciding at its rounds."""
    interval, every = sweep.scheduler.interval, experiment.federation.eval_every
    if interval is None or interval % every == 0 or not sweep.metric.startswith("test/"):
        return None
    return (
        f"federation.eval_every = {every}: the scheduler decides every {interval} rounds, each of which "
        "must be evaluated; let it divide that number"
    )


def _grown(now: Placement, cluster_file: Path | None) -> int | None:
    """Client actors that fit on all nodes that the file of `ray up` allows for."""
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
    for name in sorted(fits, key=lambda name: -fits[name]):  # the roomiest type first
        workers = min(types[name].get("max_workers", most if name != head else 0), left)
        total, left = total + workers * fits[name], left - workers
    return total
