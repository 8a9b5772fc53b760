"""Ray Tune callbacks: progress of the trials for MLflow and the terminal, and a time limit for new nodes."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from rayfl.analysis.states import SUCCEEDED, State
from rayfl.errors import ConfigError, first_line
from rayfl.inputs import Inputs
from rayfl.provenance import trial_folder
from rayfl.runtime.placement import Placement, could_hold, refusal
from rayfl.storage.storage import Storage, below
from tuning.config import Sweep
from tuning.plan import PlannedTrial
from tuning.tracking import SweepTracker
from tuning.trial import MODEL_FILE


@dataclass(frozen=True)
class TrialUpdate:
    """Progress or change of state of one trial."""

    trial: PlannedTrial
    state: State
    rounds: int = 0
    """Number of finished rounds."""
    value: float | None = None
    """Last value of the sweep's metric."""
    reason: str = ""
    """Reason of the state, or the note that a running trial was resumed."""


logger = logging.getLogger(__name__)

OnUpdate = Callable[[TrialUpdate], None]

CHECK_SECONDS = 1.0  # between two looks for new nodes


class ReportingCallback(tune.Callback):
    """Record and announce the reports of all trials and how each trial ended."""

    def __init__(
        self,
        tracker: SweepTracker,
        sweep: Sweep,
        trials: dict[str, PlannedTrial],
        inputs: Inputs,
        on_update: OnUpdate,
    ):
        self._tracker, self._sweep, self._trials = tracker, sweep, trials
        self._inputs, self._on_update = inputs, on_update
        self._error: ConfigError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for its own restore, which rayfl does not use

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """Raise if another process has taken the sweep over, or if a trial failed as all others would."""
        self._tracker.lease.check()
        if self._error is not None:
            raise self._error

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        planned = self._trials[str(trial)]
        self._tracker.start(planned, *self._inputs.of(planned.config))
        self._announce(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        hash = str(trial)
        if result.get("ends_sweep"):
            self._error = ConfigError(result["failed"])
        self._tracker.record(hash, result)
        planned, value = self._trials[hash], result.get(self._sweep.metric)
        if resumed := result["resumed"]:
            note = f"goes on after round {resumed}"
            self._on_update(TrialUpdate(planned, "running", resumed, reason=note))
        self._on_update(TrialUpdate(planned, "running", result["rounds"], value))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result
        state, reason = self._final_state(str(trial), result)
        digest = result.get("model_sha256")
        tags = {"rayfl.model_sha256": digest} if digest else {}
        self._end(trial, state, reason, result.get("traceback", ""), tags)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        path = trial.error_file
        text = Path(path).read_text() if path and Path(path).exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        named = [line for line in lines if "Error: " in line or "died" in line]
        reason = (named[:1] or lines[-1:] or ["its process died"])[0]
        self._end(trial, "failed", reason, text, {})

    def _final_state(self, hash: str, result: dict) -> tuple[State, str]:
        if "failed" in result:
            return "failed", result["failed"]
        if result.get("stopped"):
            return "stopped_early", result["stopped"]
        if result["rounds"] >= self._trials[hash].config.federation.rounds:
            return "finished", ""
        value = result.get(self._sweep.metric)
        shown = f" with {self._sweep.metric} {value:.4f}" if value is not None else ""
        name = type(self._sweep.scheduler).__name__
        return "stopped_early", f"round {result['rounds']}: {name} stopped it{shown}"

    def _end(self, trial: Any, state: State, reason: str, text: str, tags: dict[str, str]) -> None:
        hash = str(trial)
        if text:
            path = log_path(self._sweep, hash)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if state in SUCCEEDED and self._sweep.logs_model(self._trials[hash].config):
            self._tracker.attach_model(hash, lambda: self._model(hash))
        self._tracker.end(hash, state, reason, text, tags)
        if state in SUCCEEDED and not self._sweep.keep_checkpoints:
            # Not before its end is recorded: started again, a trial cannot repeat its population's decisions.
            self._tracker.afterwards(lambda: self._delete_checkpoints(hash))
        self._announce(trial, state, reason)

    def _delete_checkpoints(self, hash: str) -> None:
        """Delete the checkpoints of a trial that will not resume: client memories need much space."""
        location, folder = self._place(hash)
        Storage(location).remove(folder)

    def _model(self, hash: str) -> bytes | None:
        """Take the final model from where the trial left it; None if this process cannot see it."""
        left = Storage(below(*self._place(hash)))
        try:
            content = left.read(MODEL_FILE)
        except OSError as error:
            logger.warning("no model in MLflow of %s (%s)", hash, first_line(error))
            return None
        left.delete(MODEL_FILE)
        return content

    def _place(self, hash: str) -> tuple[str, str]:
        """Return the location of the checkpoints of a trial's config, and the trial's folder there."""
        trial = self._trials[hash]
        folder = trial_folder(self._sweep.name, trial.provenance.tags)
        return below(trial.config.checkpoint.location, hash), folder

    def _announce(self, trial: Any, state: State, reason: str = "") -> None:
        result = trial.last_result or {}
        rounds, value = int(result.get("rounds", 0)), result.get(self._sweep.metric)
        self._on_update(TrialUpdate(self._trials[str(trial)], state, rounds, value, reason))


class PlacementTimeout(tune.Callback):
    """End a sweep if nothing runs and no nodes arrive within `resources.autoscale_timeout_s`."""

    def __init__(self, placement: Placement):
        self._placement = placement
        self._last_room = self._checked = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """Raise ConfigError after the time limit."""
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        if any(trial.status == "RUNNING" for trial in trials) or could_hold(self._placement):
            self._last_room = now
        elif now - self._last_room > self._placement.autoscale_timeout_s:
            raise refusal(self._placement, self._placement.autoscale_timeout_s)


def log_path(sweep: Sweep, hash: str) -> Path:
    """Return the file for the traceback of a failed trial, on the machine that runs the command."""
    return Path("sweeps") / sweep.name / "failed" / f"{hash}.txt"
