"""Run of the missing trials with Ray Tune.

Tune receives the identity and the experiment of each trial as its config, a searcher or a grid of identities,
one scheduler for each group of comparable trials, and a callback that passes all reports on.
"""

import functools
import itertools
import random
from collections.abc import Hashable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import ray
from ray import tune

from rayfl.provenance import trial_folder
from rayfl.runtime.placement import memory_bytes
from rayfl.storage.checkpoint import SavedCheckpoint, newest_in
from rayfl.storage.storage import Storage, below
from tuning import plan as planning
from tuning.callbacks import OnUpdate, PlacementTimeout, ReportingCallback, TrialUpdate
from tuning.exploit import Exploit
from tuning.group_scheduler import GroupScheduler
from tuning.plan import PlannedTrial, SweepPlan
from tuning.point_scheduler import PointScheduler, PointTrials
from tuning.schedulers import PBT, NoScheduler
from tuning.searchers import Optuna
from tuning.seed_averaged_searcher import SeedAveragedSearcher
from tuning.shared_inputs import SharedInputs
from tuning.space import Point, applicable, text
from tuning.tracking import SweepTracker
from tuning.trainable import Trainable
from tuning.trial import MUTATED, TrialSpec


class SweepRunner:
    """Run the missing trials of a plan."""

    def __init__(self, planned: SweepPlan, tracker: SweepTracker, on_update: OnUpdate):
        self.plan, self.sweep, self.tracker = planned, planned.sweep, tracker
        self.on_update = on_update
        self.trials = {trial.hash: trial for trial in planned.trials}
        """Trials by hash; a searcher adds more."""
        self._points: dict[Hashable, list[PointTrials]] = {}
        """Points of each group of comparable trials, in order; a searcher adds more."""
        self._earlier: dict[str, dict[int, float]] = {}
        """Metric by round of the trials that earlier commands have ended."""
        self._reached: dict[str, int] = {}
        """Rounds of the checkpoints of a population's trials."""
        self._exploited: dict[str, int] = {}
        """Rounds at which a population's trials go on from another one's checkpoint."""

    def begin(self) -> int:
        """Announce the trials that will not run. Return the number that earlier commands have ended."""
        for trial in self.plan.trials:
            self._note(trial)
        return sum(self.tracker.ended(trial) is not None for trial in self.plan.trials)

    def run(self) -> None:
        """Run the missing trials."""
        for _, trials in itertools.groupby(self.plan.trials, lambda trial: text(trial.point)):
            self._add_point([*trials])
        missing = [t for t in self.plan.feasible if self.tracker.ended(t) is None]
        if missing or isinstance(self.sweep.search, Optuna):
            # Ray Tune's schedulers use the global random generators.
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            self._tuner(missing).fit()

    def _note(self, trial: PlannedTrial) -> None:
        """Announce a trial that will not run."""
        if trial.problem is not None:
            self.tracker.infeasible(trial)
            self.on_update(TrialUpdate(trial, "infeasible", reason=trial.problem))
        elif known := self.tracker.ended(trial):
            self.tracker.answer(known)
            self.on_update(TrialUpdate(trial, known.state, known.rounds, known.value, known.reason))

    def _tuner(self, missing: list[PlannedTrial]) -> tune.Tuner:
        shared = self._shared()
        bundles: list[dict[str, float]] = [{}, *[shared.placement.bundle] * shared.placement.actors]
        trainable = tune.with_resources(
            tune.with_parameters(Trainable, shared=shared, sweep=self.sweep),
            tune.PlacementGroupFactory(bundles, strategy="PACK"),
        )
        searcher = self._searcher()
        configs = {trial.hash: self._config(trial) for trial in missing}
        limit = self.plan.at_once_grown or self.plan.at_once or 1
        if self.sweep.scheduler.decides_on_points:
            limit = max(limit, len(self.sweep.seeds))  # a paused trial counts too
        callbacks: list[tune.Callback] = [
            ReportingCallback(
                self.tracker, self.sweep, self.trials, self.plan.inputs, self.on_update
            )
        ]
        if shared.placement.autoscale_timeout_s:
            callbacks.append(PlacementTimeout(shared.placement))
        return tune.Tuner(
            trainable,
            param_space={} if searcher else _grid(configs),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1 if searcher else 1,
                scheduler=self._scheduler(),
                reuse_actors=True,
                max_concurrent_trials=self.sweep.max_concurrent or (limit if searcher else None),
                trial_name_creator=lambda trial: trial.config["hash"],
                trial_dirname_creator=lambda trial: f"{trial.config['hash']}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=self.sweep.directory,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=self.sweep.max_failures),
                verbose=0,
            ),
        )

    def _shared(self) -> SharedInputs:
        data = self.plan.inputs.data
        once = {id(dataset): dataset for dataset, _ in data.values()}  # partitions share datasets
        stored = {key: ray.put(dataset) for key, dataset in once.items()}
        data = {key: (stored[id(dataset)], ray.put(part)) for key, (dataset, part) in data.items()}
        placement, trials = self.plan.placement, self.plan.at_once_grown or self.plan.at_once or 1
        most = memory_bytes(self.plan.memories_gb, placement, trials)
        return SharedInputs(data, placement, most)

    def _config(self, trial: PlannedTrial) -> dict[str, Any]:
        """Return Tune's config of a trial."""
        scheduler = self.sweep.scheduler
        mutable = scheduler.mutate if isinstance(scheduler, PBT) else ()
        mutated = {key: trial.point[key] for key in mutable}
        root = trial.config.checkpoint.location
        taken_over = None
        if mutated:
            own = self._checkpoints(trial)
            if saved := newest_in(own):
                self._reached[trial.hash] = saved.round
                mutated |= _mutated_values(saved)
            exploit = Exploit.read(own)
            if exploit and exploit.round >= self._reached.get(trial.hash, 0):
                self._exploited[trial.hash] = exploit.round
                mutated, taken_over = exploit.values, exploit.checkpoint
        content = trial.config.model_dump(mode="json")
        content["tracking"]["uri"] = None  # it may have a password, and Tune writes this down
        spec = TrialSpec(content, root, trial.provenance, taken_over)
        return {"hash": trial.hash, "spec": spec, **mutated}

    def _checkpoints(self, trial: PlannedTrial) -> Storage:
        folder = trial_folder(self.sweep.name, trial.provenance.tags)
        return Storage(below(trial.config.checkpoint.location, trial.hash, folder))

    def _record_exploit(self, trial: Any, round: int) -> None:
        """Record that Ray Tune's `trial` goes on from another one's checkpoint."""
        planned, scheduler = self.trials[str(trial)], self.sweep.scheduler
        assert isinstance(scheduler, PBT)
        if planned.config.checkpoint.every is None:
            return
        values = {key: trial.config[key] for key in scheduler.mutate}
        place = below(
            self.sweep.directory, "tune", *PurePosixPath(trial.checkpoint.path).parts[-2:]
        )
        Exploit(round, place, values).write(self._checkpoints(planned))

    def _scheduler(self) -> Any:
        scheduler, sweep = self.sweep.scheduler, self.sweep
        if isinstance(scheduler, NoScheduler):
            return None

        @functools.cache
        def group(hash: str) -> Hashable:
            planned = self.trials[hash]
            return scheduler.group(planned.point, planned.seed)

        def make(group: Hashable) -> Any:
            if isinstance(scheduler, PBT):
                decided = self._decided(scheduler, group)
                given = sweep.space, sweep.metric, sweep.mode
                return scheduler.build(*given, group, decided, self._record_exploit)
            inner = scheduler.build(sweep.space, sweep.metric, sweep.mode)
            if not scheduler.decides_on_points:
                return inner
            return PointScheduler(inner, sweep.metric, self._points[group], self._earlier)

        # By the trial's name, because population-based training changes its config.
        return GroupScheduler(make, lambda trial: group(str(trial)))

    def _decided(self, scheduler: PBT, group: Hashable) -> int:
        """Return the round at which earlier commands have decided last on this population."""
        trials = [t for t in self.plan.feasible if scheduler.group(t.point, t.seed) == group]
        known = [self.tracker.ended(trial) for trial in trials]
        return scheduler.decided(
            self.sweep.rounds(trials[0].config),
            [self._reached.get(trial.hash, 0) for trial in trials],
            [run.rounds for run in known if run is not None],
            [self._exploited.get(trial.hash, 0) for trial in trials],
        )

    def _add_point(self, trials: list[PlannedTrial]) -> None:
        """Note a point's trials for a scheduler that decides on points."""
        trials, scheduler = [t for t in trials if t.problem is None], self.sweep.scheduler
        if not trials or not scheduler.decides_on_points:
            return
        first = trials[0]
        rounds = tuple(scheduler.rounds(self.sweep.rounds(first.config)))
        point = PointTrials(text(first.point), tuple(trial.hash for trial in trials), rounds)
        self._points.setdefault(scheduler.group(first.point, first.seed), []).append(point)
        for trial in trials:
            if known := self.tracker.ended(trial):
                self._earlier[trial.hash] = self.tracker.values(known.run_id)

    def _searcher(self) -> SeedAveragedSearcher | None:
        search, sweep = self.sweep.search, self.sweep
        if not isinstance(search, Optuna):
            return None

        def value_of(trial: PlannedTrial) -> float | None:
            known = self.tracker.ended(trial)
            return known.value if known else None

        return SeedAveragedSearcher(
            search.searcher(sweep.space, sweep.metric, sweep.mode),
            search.num_samples,
            self._trials_at,
            value_of,
            self._config,
            self.tracker.told(),
            self.tracker.record_told,
            sweep.metric,
            sweep.mode,
        )

    def _trials_at(self, suggested: Point) -> list[PlannedTrial]:
        """Return the checked trials, one for each seed, of a point that a searcher suggests."""
        sweep = self.sweep
        point = applicable(sweep.space, suggested)
        resolved = [planning.resolve(sweep, point, seed) for seed in sweep.seeds]
        found = [planning.checked(sweep, trial, self.plan.inputs) for trial in resolved]
        new = [trial for trial in found if trial.hash not in self.trials]
        for trial in new:
            self.trials[trial.hash] = trial
            self._note(trial)
        self._add_point(new)
        return found


def _mutated_values(saved: SavedCheckpoint) -> Point:
    """Return the values of population-based training at a checkpoint."""
    rows = saved.history()
    last = rows[max(rows)]
    return {k.removeprefix(MUTATED): v for k, v in last.items() if k.startswith(MUTATED)}


def _grid(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a grid of identities with the config of each.

    The configs are samplers, which stops Tune from resolving their nested values.
    """

    def sampler(key: str) -> Any:
        def value(spec: Any) -> Any:
            return configs[spec.config["hash"]][key]

        return tune.sample_from(value)

    keys = sorted(next(iter(configs.values())).keys() - {"hash"})
    return {"hash": tune.grid_search(list(configs)), **{key: sampler(key) for key in keys}}
