"""START HERE for sweeps: file -> points -> trials -> what MLflow has already -> Ray Tune -> rows.

A trial's identity is the hash of its experiment, so the same command again runs what is missing: it skips
what has ended, goes on with what was interrupted, tries again what failed, and adds what the space gained.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rayfl.config.schema import Experiment
from rayfl.errors import ConfigError
from rayfl.runtime import cluster
from tuning import plan as planning
from tuning.callbacks import Watch, log_path
from tuning.config import Sweep
from tuning.plan import Inputs, PlannedTrial, SweepPlan
from tuning.searchers import Optuna
from tuning.states import SUCCEEDED, State
from tuning.tracking import SweepTracker
from tuning.tuner import SweepRunner


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial."""

    trial: PlannedTrial
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
class SweepStart:
    """What is known before the trials start."""

    plan: SweepPlan
    ended: int
    """Trials that earlier commands have done."""
    parent_id: str
    ui_command: str


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves."""

    rows: tuple[TrialResult, ...]
    parent_id: str

    @property
    def succeeded(self) -> bool:
        return all(row.state in SUCCEEDED for row in self.rows)


def plan(sweep: Sweep, cluster_file: Path | None = None) -> SweepPlan:
    """What the sweep would do on the cluster of `base.ray.address`, or on this machine."""
    found, inputs = _feasible(sweep)
    with _worded(sweep), cluster.connected(**_experiment(found).ray.model_dump()):
        return planning.share(sweep, found, inputs, cluster_file)


def run(
    sweep: Sweep,
    on_start: Callable[[SweepStart], None] = lambda start: None,
    watch: Watch = lambda *_: None,
) -> SweepResult:
    """Run what is missing of the sweep, and return a row for every trial.

    `watch`: called with (trial, state, rounds, value, reason) when something happens to a trial. Raises
    ConfigError before any actor starts. Interrupted, it leaves a sweep that the same call goes on with.
    """
    from rayfl.tracking.mlflow import TrackingStore

    found, inputs = _feasible(sweep)
    base = _experiment(found)
    if not base.tracking.enabled:
        raise ConfigError("base.tracking.enabled = false: MLflow is what a sweep goes on from")
    with (
        _worded(sweep),
        ThreadPoolExecutor(1) as aside,
        cluster.connected(**base.ray.model_dump()),
    ):
        opening = aside.submit(TrackingStore, base.tracking.uri, base.tracking.experiment)
        planned = planning.share(sweep, found, inputs)
        store = opening.result()
        tracker = SweepTracker(store, sweep)
        status = "FAILED"
        driver = SweepRunner(planned, tracker, watch)
        try:
            on_start(SweepStart(planned, driver.begin(), tracker.parent_id, store.ui_command))
            driver.run()
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)
        rows = tuple(_rows(sweep, driver.trials, tracker))
    return SweepResult(rows, tracker.parent_id)


@contextlib.contextmanager
def _worded(sweep: Sweep) -> Iterator[None]:
    """Input that is bad for all of its experiments is named by the keys of the sweep."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(sweep.worded(str(error))) from error


def _feasible(sweep: Sweep) -> tuple[list[PlannedTrial], Inputs]:
    """The trials that are known beforehand, checked; ConfigError if none can run."""
    inputs, search = Inputs(), sweep.search
    # The points that a searcher will ask for have the same data.
    points = (
        [search.probe(sweep.space)] if isinstance(search, Optuna) else search.points(sweep.space)
    )
    found = [
        planning.checked(sweep, trial, inputs) for trial in planning.trials(sweep, points or ())
    ]
    planning.check_any(found)
    return found, inputs


def _experiment(found: list[PlannedTrial]) -> Experiment:
    return next(t.experiment for t in found if t.experiment is not None and t.problem is None)


def _rows(
    sweep: Sweep, trials: dict[str, PlannedTrial], tracker: SweepTracker
) -> Iterator[TrialResult]:
    """What MLflow says of the trials, whichever command ran them."""
    runs = tracker.results()
    for trial in trials.values():
        run = runs[trial.hash]
        metrics, tags = run.data.metrics, run.data.tags
        yield TrialResult(
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
