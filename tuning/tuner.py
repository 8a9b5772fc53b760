"""Runs the trials that are missing, by Ray Tune.

Tune gets a trial's identity and experiment as its config, a searcher or a grid of identities, a scheduler
for each group of trials that compete, and a callback that hands all reports on.
"""

import os
import random
from typing import Any

# Before Ray Tune is imported. Its loggers write what MLflow has; trials stay in the working directory;
# interrupts are the command's.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # prints, however quiet it is asked to be

import numpy as np
import ray
from ray import tune

from rayfl.prepare import storage
from rayfl.storage.checkpoint import saved_in
from rayfl.storage.storage import Storage, below
from tuning import plan as planning
from tuning.callbacks import ReportingCallback, Watch
from tuning.inputs import SharedInputs
from tuning.per_task_scheduler import PerTaskScheduler
from tuning.placement_timeout import PlacementTimeout
from tuning.plan import PlannedTrial, SweepPlan
from tuning.schedulers import PBT
from tuning.searchers import Optuna
from tuning.seed_averaged_searcher import SeedAveragedSearcher
from tuning.space import Point, applicable
from tuning.tracking import SweepTracker
from tuning.trainable import Trainable
from tuning.trial import MUTATED, TrialSpec


class SweepRunner:
    """Runs the trials that are missing."""

    def __init__(self, planned: SweepPlan, tracker: SweepTracker, watch: Watch):
        self.plan, self.sweep, self.tracker, self.watch = planned, planned.sweep, tracker, watch
        self.trials = {trial.hash: trial for trial in planned.trials}
        """By hash; a searcher adds to them."""

    def begin(self) -> int:
        """Tell of the trials that will not run; how many of them earlier commands have done."""
        for trial in self.plan.trials:
            self._note(trial)
        return sum(self.tracker.ended(trial.hash) is not None for trial in self.plan.trials)

    def run(self) -> None:
        """Run the others."""
        missing = [t for t in self.plan.feasible if self.tracker.ended(t.hash) is None]
        if missing or isinstance(self.sweep.search, Optuna):
            # Ray Tune's schedulers draw from the global generators.
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            self._tuner(missing).fit()

    def _note(self, trial: PlannedTrial) -> None:
        """Tell of a trial that will not run."""
        if trial.problem is not None:
            self.tracker.infeasible(trial)
            self.watch(trial, "infeasible", 0, None, trial.problem)
        elif known := self.tracker.ended(trial.hash):
            self.watch(trial, known.state, known.rounds, known.value, known.reason)

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
        return tune.Tuner(
            trainable,
            # Samplers keep Tune's hands off what is inside of a config.
            param_space={}
            if searcher
            else {
                "hash": tune.grid_search(list(configs)),
                **{
                    key: tune.sample_from(lambda spec, key=key: _of(configs, spec)[key])
                    for key in next(iter(configs.values()))
                    if key != "hash"
                },
            },
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
                callbacks=self._callbacks(),
                failure_config=tune.FailureConfig(max_failures=self.sweep.max_failures),
                verbose=0,
            ),
        )

    def _callbacks(self) -> list[tune.Callback]:
        reporter = ReportingCallback(
            self.tracker, self.sweep, self.trials, self.plan.inputs, self.watch
        )
        placement = self.plan.placement
        return (
            [reporter, PlacementTimeout(placement)] if placement.autoscale_timeout_s else [reporter]
        )

    def _shared(self) -> SharedInputs:
        inputs, stored = self.plan.inputs, {}
        for dataset, _ in inputs.data.values():
            if id(dataset) not in stored:  # partitions of the same data share them
                stored[id(dataset)] = ray.put(dataset)
        data = {
            key: (stored[id(dataset)], ray.put(partition))
            for key, (dataset, partition) in inputs.data.items()
        }
        return SharedInputs(data, self.plan.placement)

    def _config(self, trial: PlannedTrial) -> dict[str, Any]:
        """Tune's config of a trial."""
        assert trial.experiment is not None
        scheduler = self.sweep.scheduler
        mutable = scheduler.mutate if isinstance(scheduler, PBT) else ()
        mutated = {key: trial.point[key] for key in mutable}
        root = storage(trial.experiment)
        if mutated:
            mutated |= _reached(below(root, trial.hash, self.sweep.name))
        content = trial.experiment.model_dump(mode="json")
        return {"hash": trial.hash, "spec": TrialSpec(content, root), **mutated}

    def _scheduler(self) -> Any:
        scheduler, sweep = self.sweep.scheduler, self.sweep
        if scheduler.interval is None:
            return None
        rounds = max(
            min(t.experiment.federation.rounds, sweep.stop.rounds or 10**9)
            for t in self.plan.feasible
            if t.experiment
        )

        def group(trial: Any) -> Any:
            # By the trial's name: population-based training changes configs.
            planned = self.trials[str(trial)]
            return scheduler.group(planned.point, planned.seed)

        return PerTaskScheduler(
            lambda: scheduler.build(sweep.space, sweep.metric, sweep.mode, rounds), group
        )

    def _searcher(self) -> SeedAveragedSearcher | None:
        search, sweep = self.sweep.search, self.sweep
        if not isinstance(search, Optuna):
            return None

        def trials_of(point: Point) -> list[PlannedTrial]:
            resolved = [
                planning.checked(
                    sweep,
                    planning.resolve(sweep, applicable(sweep.space, point), seed),
                    self.plan.inputs,
                )
                for seed in sweep.seeds
            ]
            for trial in resolved:
                if trial.hash not in self.trials:
                    self.trials[trial.hash] = trial
                    self._note(trial)
            return resolved

        def value_of(hash: str) -> float | None:
            known = self.tracker.ended(hash)
            return known.value if known else None

        inner = search.searcher(sweep.space, sweep.metric, sweep.mode)
        return SeedAveragedSearcher(
            inner,
            search.num_samples,
            trials_of,
            value_of,
            self._config,
            sweep.metric,
            sweep.mode,
        )


def _reached(location: str) -> Point:
    """The values that population-based training had reached at the last checkpoint."""
    saved = saved_in(Storage(location))
    if not saved:
        return {}
    rows = saved[-1].history()
    last = rows[max(rows)]
    return {k.removeprefix(MUTATED): v for k, v in last.items() if k.startswith(MUTATED)}


def _of(configs: dict[str, dict[str, Any]], spec: Any) -> dict[str, Any]:
    """The config of the trial that Tune is making."""
    return configs[spec.config["hash"]]
