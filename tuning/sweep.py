"""START HERE for sweeps: file -> points -> trials -> what MLflow has already -> Ray Tune -> rows.

A trial's identity is the hash of its experiment, so the same command again runs what is missing: it skips
what has ended, goes on with what was interrupted, tries again what failed, and adds what the space gained.
"""

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
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

from rayfl.checkpoint import saved_in
from rayfl.config import Experiment
from rayfl.errors import ConfigError
from rayfl.experiment import storage
from rayfl.folder import Folder, below
from rayfl.runtime import cluster
from tuning import plan as planning
from tuning.config import Sweep
from tuning.execution import MUTATED, Job
from tuning.grouped import GroupedScheduler
from tuning.paired import PairedSearcher
from tuning.plan import Inputs, Plan, Trial
from tuning.record import Record, State
from tuning.reporter import Reporter, Watch, log_path
from tuning.schedulers import PBT
from tuning.searches import Optuna
from tuning.shared import Shared
from tuning.space import Point, applicable
from tuning.trial import Trainable


@dataclass(frozen=True)
class Row:
    """What became of a trial."""

    trial: Trial
    state: State
    reason: str
    rounds: int
    value: float | None
    """Last value of the sweep's metric."""
    run_id: str
    model_sha256: str | None
    """Of the final w."""
    log: Path | None
    """File with the traceback of one that failed."""
    summary: dict[str, float]


@dataclass(frozen=True)
class Start:
    """What is known before the trials start."""

    plan: Plan
    ended: int
    """Trials that earlier commands have done."""
    parent_id: str
    ui_command: str


@dataclass(frozen=True)
class Result:
    """What a sweep leaves."""

    rows: tuple[Row, ...]
    parent_id: str

    @property
    def succeeded(self) -> bool:
        return all(row.state in ("finished", "stopped_early") for row in self.rows)


def plan(sweep: Sweep, cluster_file: Path | None = None) -> Plan:
    """What the sweep would do on the cluster of `base.ray.address`, or on this machine."""
    found, inputs = _feasible(sweep)
    with cluster.connected(**_experiment(found).ray.model_dump()):
        return planning.share(sweep, found, inputs, cluster_file)


def run(
    sweep: Sweep,
    on_start: Callable[[Start], None] = lambda start: None,
    watch: Watch = lambda *_: None,
) -> Result:
    """Run what is missing of the sweep, and return a row for every trial.

    `watch`: called with (hash, state, rounds, value, reason) when something happens to a trial. Raises
    ConfigError before any actor starts. Interrupted, it leaves a sweep that the same call goes on with.
    """
    from rayfl.tracking import Store

    found, inputs = _feasible(sweep)
    base = _experiment(found)
    if not base.tracking.enabled:
        raise ConfigError("base.tracking.enabled = false: MLflow is what a sweep goes on from")
    with ThreadPoolExecutor(1) as aside, cluster.connected(**base.ray.model_dump()):
        opening = aside.submit(Store, base.tracking.uri, base.tracking.experiment)
        planned = planning.share(sweep, found, inputs)
        store = opening.result()
        record = Record(store, sweep)
        status = "FAILED"
        driver = _Driver(planned, record, on_start, watch, store.ui_command)
        try:
            driver.run()
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            record.finish(status)
        rows = tuple(_rows(sweep, driver.trials, record))
    return Result(rows, record.parent_id)


class _Driver:
    """Runs the trials that are missing."""

    def __init__(
        self,
        planned: Plan,
        record: Record,
        on_start: Callable[[Start], None],
        watch: Watch,
        ui_command: str,
    ):
        self.plan, self.sweep, self.record, self.watch = planned, planned.sweep, record, watch
        self.on_start, self.ui_command = on_start, ui_command
        self.trials = {trial.hash: trial for trial in planned.trials}

    def run(self) -> None:
        for trial in self.plan.trials:
            self._note(trial)
        ended = sum(self.record.ended(trial.hash) is not None for trial in self.plan.trials)
        self.on_start(Start(self.plan, ended, self.record.parent_id, self.ui_command))
        missing = [t for t in self.plan.feasible if self.record.ended(t.hash) is None]
        if missing or isinstance(self.sweep.search, Optuna):
            # Ray Tune's schedulers draw from the global generators.
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            self._tuner(missing).fit()

    def _note(self, trial: Trial) -> None:
        """Tell of a trial that will not run."""
        if trial.problem is not None:
            self.record.infeasible(trial)
            self.watch(trial.hash, "infeasible", 0, None, trial.problem)
        elif known := self.record.ended(trial.hash):
            self.watch(trial.hash, known.state, known.rounds, known.value, known.reason)

    def _tuner(self, missing: list[Trial]) -> tune.Tuner:
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
                callbacks=[
                    Reporter(self.record, self.sweep, self.trials, self.plan.inputs, self.watch)
                ],
                failure_config=tune.FailureConfig(max_failures=self.sweep.max_failures),
                verbose=0,
            ),
        )

    def _shared(self) -> Shared:
        inputs, stored = self.plan.inputs, {}
        for dataset, _ in inputs.data.values():
            if id(dataset) not in stored:  # partitions of the same data share them
                stored[id(dataset)] = ray.put(dataset)
        data = {
            key: (stored[id(dataset)], ray.put(partition))
            for key, (dataset, partition) in inputs.data.items()
        }
        return Shared(data, self.plan.placement)

    def _config(self, trial: Trial) -> dict[str, Any]:
        """Tune's config of a trial."""
        assert trial.experiment is not None
        scheduler = self.sweep.scheduler
        mutable = scheduler.mutate if isinstance(scheduler, PBT) else ()
        mutated = {key: trial.point[key] for key in mutable}
        root = storage(trial.experiment)
        if mutated:
            mutated |= _reached(below(root, trial.hash, self.sweep.name))
        content = trial.experiment.model_dump(mode="json")
        return {"hash": trial.hash, "job": Job(content, root), **mutated}

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

        return GroupedScheduler(
            lambda: scheduler.build(sweep.space, sweep.metric, sweep.mode, rounds), group
        )

    def _searcher(self) -> PairedSearcher | None:
        search, sweep = self.sweep.search, self.sweep
        if not isinstance(search, Optuna):
            return None

        def trials_of(point: Point) -> list[Trial]:
            resolved = [
                planning.checked(
                    planning.resolve(sweep, applicable(sweep.space, point), seed), self.plan.inputs
                )
                for seed in sweep.seeds
            ]
            for trial in resolved:
                if trial.hash not in self.trials:
                    self.trials[trial.hash] = trial
                    self._note(trial)
            return resolved

        def value_of(hash: str) -> float | None:
            known = self.record.ended(hash)
            return known.value if known else None

        inner = search.searcher(sweep.space, sweep.metric, sweep.mode)
        return PairedSearcher(
            inner,
            search.num_samples,
            trials_of,
            value_of,
            self._config,
            sweep.metric,
            sweep.mode,
        )


def _feasible(sweep: Sweep) -> tuple[list[Trial], Inputs]:
    """The trials that are known beforehand, checked; ConfigError if none can run."""
    inputs, search = Inputs(), sweep.search
    # The points that a searcher will ask for have the same data.
    points = (
        [search.probe(sweep.space)] if isinstance(search, Optuna) else search.points(sweep.space)
    )
    found = [planning.checked(trial, inputs) for trial in planning.trials(sweep, points or ())]
    planning.check_any(found)
    return found, inputs


def _experiment(found: list[Trial]) -> Experiment:
    return next(t.experiment for t in found if t.experiment is not None and t.problem is None)


def _reached(location: str) -> Point:
    """The values that population-based training had reached at the last checkpoint."""
    saved = saved_in(Folder(location))
    if not saved:
        return {}
    rows = saved[-1].history()
    last = rows[max(rows)]
    return {k.removeprefix(MUTATED): v for k, v in last.items() if k.startswith(MUTATED)}


def _rows(sweep: Sweep, trials: dict[str, Trial], record: Record) -> Iterator[Row]:
    """What MLflow says of the trials, whichever command ran them."""
    runs = record.results()
    for trial in trials.values():
        run = runs[trial.hash]
        metrics, tags = run.data.metrics, run.data.tags
        yield Row(
            trial=trial,
            state=tags["rayfl.state"],  # type: ignore[arg-type]
            reason=tags.get("rayfl.reason", ""),
            rounds=int(metrics.get("rounds", 0)),
            value=metrics.get(sweep.metric),
            run_id=run.info.run_id,
            model_sha256=tags.get("rayfl.model_sha256"),
            log=log if (log := log_path(sweep, trial.hash)).exists() else None,
            summary={k: v for k, v in metrics.items() if "/" not in k},
        )


def _of(configs: dict[str, dict[str, Any]], spec: Any) -> dict[str, Any]:
    """The config of the trial that Tune is making."""
    return configs[spec.config["hash"]]
