"""Plan of a sweep: its trials, their inputs, and the resources of each trial.

The driver makes and checks the plan before any actor starts. An invalid trial has a `problem` and gets a row
of its own in the results; the other trials run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rayfl.analysis.naming import setting
from rayfl.config.identity import config_hash
from rayfl.config.named import NAMED
from rayfl.config.schema import Experiment
from rayfl.config.sections import Resources
from rayfl.errors import ConfigError
from rayfl.federation.specs import UnitsPerRound
from rayfl.inputs import Inputs
from rayfl.launch import resource_request
from rayfl.provenance import Provenance
from rayfl.runtime.placement import Placement, place
from tuning.capacity import capacity
from tuning.config import Sweep
from tuning.schedulers import PBT
from tuning.searchers import Optuna
from tuning.space import Point, text

_LONGEST_NAME = 200  # characters
_UNKNOWN = Provenance("", {})
# Metrics that only a round with an evaluation has.
_EVALUATED = ("test/", "validation/", "client/", "average/")


@dataclass(frozen=True)
class PlannedTrial:
    """One point of the space with one seed."""

    point: Point
    seed: int
    hash: str
    """Hash of the experiment, which identifies the trial."""
    experiment: Experiment | None
    problem: str | None = None
    """Reason why the trial cannot run."""
    provenance: Provenance = _UNKNOWN
    """Digests of the data and of the user's own code; known once the trial is `checked`."""

    @property
    def config(self) -> Experiment:
        """The experiment of a trial that can run."""
        assert self.experiment is not None
        return self.experiment

    @property
    def settings(self) -> str:
        """Point and seed as overrides, which distinguish the trials of a sweep."""
        return f"{text(self.point)} seed={self.seed}".strip()

    @property
    def name(self) -> str:
        """Short name of its run; with a part of its hash where it lacks digits that others may differ in."""
        point = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in self.point.items()}
        text = " ".join([*setting(point), f"seed={self.seed}"])
        if point == self.point and len(text) <= _LONGEST_NAME:
            return text
        return f"{text[:_LONGEST_NAME]} {self.hash[:8]}"

    @property
    def identity(self) -> tuple[str, str, str]:
        """Config, data and code: runs that are equal in all three have the same result."""
        return (self.hash, self.provenance.data, self.provenance.code_digest)

    def __str__(self) -> str:
        return f"{self.hash} ({self.settings})"


@dataclass(frozen=True)
class SweepPlan:
    """Trials of a sweep and the resources of each."""

    sweep: Sweep
    trials: tuple[PlannedTrial, ...]
    """Empty if a searcher suggests them later."""
    count: int
    """Number of trials, including those that are suggested later."""
    inputs: Inputs
    placement: Placement
    room: int
    """Number of client actors that fit on the present cluster; 0: it has to grow."""
    maximum: int | None
    """Number of client actors that fit on the full cluster; None: unknown."""
    unshared: str | None = None
    """Local directory of checkpoints that several nodes would have to share, if any."""
    unshared_storage: str | None = None
    """Local directory of Ray Tune that population-based training needs on several nodes, if any."""
    memories_gb: float | None = None
    """GB of the object store for the clients' memories of one trial; None: a share of it."""

    @property
    def feasible(self) -> list[PlannedTrial]:
        return [trial for trial in self.trials if trial.problem is None]

    @property
    def at_once(self) -> int:
        """Number of concurrent trials on the present cluster."""
        return self._limited(self.room // self.placement.actors)

    @property
    def at_once_grown(self) -> int | None:
        """Number of concurrent trials on the full cluster."""
        if self.maximum is None:
            return None
        return self._limited(max(self.maximum, self.room) // self.placement.actors)

    def _limited(self, count: int) -> int:
        return min(count, self.sweep.max_concurrent or count, max(self.count, 1))


def trials(sweep: Sweep, points: Iterable[Point]) -> list[PlannedTrial]:
    """Return a trial for every point and seed; points that give the same experiment count once."""
    found: dict[str, PlannedTrial] = {}
    for point in points:
        for seed in sweep.seeds:
            trial = resolve(sweep, point, seed)
            found.setdefault(trial.hash, trial)
    return list(found.values())


def resolve(sweep: Sweep, point: Point, seed: int) -> PlannedTrial:
    """Return the trial of a point, with a `problem` if its experiment is invalid."""
    try:
        experiment = sweep.experiment(point, seed)
    except ConfigError as error:
        digest = config_hash(sweep.raw(point, seed))
        problem = str(error.rekeyed(sweep.key)) + _limit(sweep, point, error.key)
        return PlannedTrial(point, seed, digest, None, problem)
    clash = _clash(sweep, experiment)
    problem = str(clash.rekeyed(sweep.key)) if clash else None
    return PlannedTrial(point, seed, experiment.hash, experiment, problem)


def checked(sweep: Sweep, trial: PlannedTrial, inputs: Inputs) -> PlannedTrial:
    """Load the data of a trial, and return it with its provenance, or with a `problem` if this fails."""
    if trial.experiment is None or trial.problem is not None:
        return trial
    try:
        inputs.units(trial.experiment)
    except ConfigError as error:
        return replace(trial, problem=str(error.rekeyed(sweep.key)))
    data, _ = inputs.of(trial.experiment)
    return replace(trial, provenance=Provenance(data.digest, trial.experiment.code()))


def allocate(
    sweep: Sweep, found: list[PlannedTrial], inputs: Inputs, cluster_file: Path | None = None
) -> SweepPlan:
    """Plan these trials on the connected cluster. Raises ConfigError if not one of them fits.

    With `resources.num_actors = auto`, the number of concurrent trials is as large as possible, because
    trials use a cluster better than more client actors for each trial.
    """
    feasible = [trial.config for trial in found if not trial.problem]
    known, count = tuple(found), len(feasible)
    if isinstance(sweep.search, Optuna):
        known, count = (), sweep.search.num_samples * len(sweep.seeds)
    each = [inputs.units(experiment) for experiment in feasible]
    units = UnitsPerRound(max(u.on_cpus for u in each), max(u.on_gpus for u in each))
    placement, now, maximum = _place(feasible[0].resources, units, count, cluster_file)
    is_several = now.nodes > 1 or (maximum or 0) > now.actors
    unshared = _local_checkpoints(feasible[0]) if is_several else None
    copies = is_several and isinstance(sweep.scheduler, PBT) and "://" not in sweep.directory
    copied = sweep.directory if copies else None
    asked = feasible[0].resources.memories_gb
    return SweepPlan(
        *(sweep, known, count, inputs, placement, now.actors, maximum, unshared, copied),
        memories_gb=None if asked == "auto" else asked,
    )


def _place(
    resources: Resources, units: UnitsPerRound, count: int, cluster_file: Path | None
) -> tuple[Placement, Placement, int | None]:
    """Return the placement of each of `count` trials, and the capacity in actors of its size."""
    now, maximum = capacity(resources, cluster_file)
    if not now.actors:  # Ray Tune's request for nodes stands until the autoscaler adds them
        resources = resources.model_copy(
            update={"autoscale_timeout_s": resources.autoscale_timeout_s or 1.0}
        )
    actors = resources.num_actors
    if actors == "auto":
        most = units.on_gpus if now.gpus else units.on_cpus
        actors = max(1, min(most, max(now.actors, maximum or 0) // count))
    placement = place(resource_request(resources.model_copy(update={"num_actors": actors})), units)
    if placement.cpus < now.cpus or placement.gpus != now.gpus:
        given = resources.model_copy(
            update={"num_actors": "auto", "cpus_per_actor": placement.cpus}
        )
        now, _ = capacity(given, cluster_file)
    return placement, now, maximum


def _local_checkpoints(experiment: Experiment) -> str | None:
    """Return the local directory of its checkpoints, if there is one."""
    location = experiment.checkpoint.location
    return None if experiment.checkpoint.every is None or "://" in location else location


def _limit(sweep: Sweep, point: Point, key: str) -> str:
    """Return how to limit the axis `key` to the names that have it, where the point's name has not."""
    section, _, option = key.rpartition(".")
    names = sweep.space.get(f"{section}.name")
    if key not in point or section not in NAMED or names is None or not names.is_grid:
        return ""
    having = [name for name in names.values() if NAMED[section](name, option)]
    if not having or point[f"{section}.name"] in having:
        return ""
    return f"; limit this axis to others by when: {{{section}.name: [{', '.join(having)}]}}"


def _clash(sweep: Sweep, experiment: Experiment) -> ConfigError | None:
    """Return what the metric, or the scheduler, needs and the experiment lacks, if there is something."""
    held_out = sweep.metric.startswith(("validation/", "average/validation_"))
    if held_out and experiment.data.validation is None:
        return ConfigError(
            "is of samples that are held out, and data.validation holds out none",
            key="metric",
            value=sweep.metric,
            hint="set data.validation=0.1, or metric=test/accuracy",
            keys=("data.validation",),
        )
    if sweep.metric.startswith("average/") and experiment.evaluation.average is None:
        return ConfigError(
            "is of an average of the global models, and there is none",
            key="metric",
            value=sweep.metric,
            hint="set evaluation.average.last=10, say",
            keys=("evaluation.average",),
        )
    measured = experiment.diagnostics.every
    if sweep.metric.startswith("flatness/") and measured is None:
        return ConfigError(
            "is measured in no round, for diagnostics.every is not set",
            key="metric",
            value=sweep.metric,
            hint="set diagnostics.every, and what it belongs to in diagnostics.measures",
            keys=("diagnostics.every", "diagnostics.measures"),
        )
    if isinstance(sweep.scheduler, PBT) and experiment.privacy is not None:
        return ConfigError(
            "a trial goes on with the model of another one, which no epsilon counts",
            key="scheduler.name",
            value="pbt",
            hint="choose asha, median or none under privacy",
        )
    scheduler, every = sweep.scheduler, experiment.federation.eval_every
    rounds = scheduler.rounds(sweep.rounds(experiment))
    missed = [round for round in rounds if round % every]
    if missed and sweep.metric.startswith(_EVALUATED):
        return ConfigError(
            f"the scheduler decides at round {missed[0]}, which must be evaluated",
            key="federation.eval_every",
            value=every,
            hint="let it divide that number",
        )
    missed = [round for round in rounds if measured and round % measured]
    if missed and sweep.metric.startswith("flatness/"):
        return ConfigError(
            f"the scheduler decides at round {missed[0]}, which must be measured",
            key="diagnostics.every",
            value=measured,
            hint="let it divide that number",
        )
    if rounds and scheduler.decides_on_points and experiment.checkpoint.every is None:
        return ConfigError(
            "the scheduler pauses trials, which go on from their checkpoints",
            key="checkpoint.every",
            value=None,
            hint="set it to auto, or scheduler.name=none",
            keys=("scheduler.name",),
        )
    return None
