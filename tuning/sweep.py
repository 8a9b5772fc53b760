"""START HERE for sweeps: file -> points -> trials -> known results in MLflow -> Ray Tune -> rows.

The hash of its experiment identifies a trial. Therefore the same command again runs only what is missing: it
skips ended trials, resumes interrupted ones, repeats failed ones, and adds new points of the space.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rayfl.analysis.states import SUCCEEDED
from rayfl.config.schema import Experiment
from rayfl.errors import ConfigError
from rayfl.inputs import Inputs
from rayfl.runtime import cluster
from rayfl.tracking.run import check_store, ending
from tuning import plan as planning
from tuning.callbacks import OnUpdate, log_path
from tuning.config import Sweep
from tuning.overview import record_results
from tuning.plan import PlannedTrial, SweepPlan
from tuning.tracking import SweepTracker, deleted
from tuning.trial_run import TrialRun
from tuning.tuner import SweepRunner


@dataclass(frozen=True)
class TrialResult(TrialRun):
    """Result of a trial."""

    trial: PlannedTrial
    log: Path | None
    """File with the traceback of a failed trial."""


@dataclass(frozen=True)
class SweepStart:
    """Facts about a sweep before its trials start."""

    plan: SweepPlan
    ended: int
    """Number of trials that earlier commands have ended."""
    parent_id: str
    """MLflow run of the sweep."""
    ui_command: str
    page: str
    """Address of the sweep's page, once `ui_command` runs."""


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep: one row for each trial."""

    rows: tuple[TrialResult, ...]
    parent_id: str
    ray_logs: str | None = None
    """Folder with the logs of this command's own Ray, if trials failed on it."""

    @property
    def succeeded(self) -> bool:
        return all(row.state in SUCCEEDED for row in self.rows)


def plan(sweep: Sweep, cluster_file: Path | None = None) -> SweepPlan:
    """Plan the sweep on the cluster of `base.ray.address`, or on this machine."""
    found, inputs, base = _checked(sweep)
    with _rekeyed(sweep), cluster.connected(**base.ray.model_dump()):
        return planning.allocate(sweep, found, inputs, cluster_file)


def run(
    sweep: Sweep,
    on_start: Callable[[SweepStart], None] = lambda start: None,
    on_update: OnUpdate = lambda update: None,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> SweepResult:
    """Run the missing trials of the sweep, and return a row for every trial.

    `on_update` is called for each progress and change of state of a trial, `on_phase` with what is done
    before the first of them. Raises ConfigError before any
    actor starts. After an interrupt, the same call resumes the sweep.
    """
    from rayfl.tracking.store import TrackingStore

    on_phase("reading the data and checking the trials")
    found, inputs, base = _checked(sweep)
    if not base.tracking.enabled:
        raise ConfigError("MLflow is what a sweep goes on from", "base.tracking.enabled", False)
    with _rekeyed(sweep):
        check_store(base)
    on_phase("starting Ray and opening MLflow")
    with (
        _rekeyed(sweep),
        ThreadPoolExecutor(1) as aside,
        cluster.connected(**base.ray.model_dump()) as folder,
    ):
        opening = aside.submit(TrackingStore, base.tracking.uri, base.tracking.experiment)
        planned = planning.allocate(sweep, found, inputs)
        store = opening.result()
        tracker = SweepTracker(store, sweep)
        runner = SweepRunner(planned, tracker, on_update)
        with ending(tracker.finish):
            page = store.page(tracker.parent_id)
            ended = runner.begin()
            on_start(SweepStart(planned, ended, tracker.parent_id, store.ui_command, page))
            runner.run()
        rows = tuple(_rows(sweep, runner.trials, tracker))
        failed = any(row.state == "failed" for row in rows)
        logs = folder.keep() if failed else None
    record_results(store, tracker.parent_id, sweep, rows)
    return SweepResult(rows, tracker.parent_id, logs)


@contextlib.contextmanager
def _rekeyed(sweep: Sweep) -> Iterator[None]:
    """Translate the keys of errors about the base experiment into the keys of the sweep."""
    try:
        yield
    except ConfigError as error:
        raise error.rekeyed(sweep.key) from error


def _checked(sweep: Sweep) -> tuple[list[PlannedTrial], Inputs, Experiment]:
    """Return the checked trials that are known before the start, and the first feasible experiment.

    Raises ConfigError if none can run.
    """
    inputs = Inputs()
    resolved = planning.trials(sweep, sweep.search.points(sweep.space))
    found = [planning.checked(sweep, trial, inputs) for trial in resolved]
    base = next((trial.experiment for trial in found if trial.problem is None), None)
    if base is None:
        raise ConfigError(f"none of the {len(found)} trials can run: {found[0].problem}")
    return found, inputs, base


def _rows(
    sweep: Sweep, trials: dict[str, PlannedTrial], tracker: SweepTracker
) -> Iterator[TrialResult]:
    """Read the results of the trials from MLflow, from all commands."""
    runs = tracker.results()
    if gone := [f"that of {trial}" for trial in trials.values() if trial.identity not in runs]:
        raise deleted(gone)
    for trial in trials.values():
        log = log_path(sweep, trial.hash)
        yield TrialResult(
            **vars(runs[trial.identity]), trial=trial, log=log if log.exists() else None
        )
