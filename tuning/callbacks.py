"""What Ray Tune tells the driver of its trials, on its way to MLflow and to the terminal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from rayfl.prepare import storage
from rayfl.storage.storage import Storage, below
from tuning.config import Sweep
from tuning.plan import Inputs, PlannedTrial
from tuning.states import SUCCEEDED, State
from tuning.tracking import SweepTracker

Watch = Callable[[PlannedTrial, State, int, float | None, str], None]
"""(trial, state, rounds, value, reason), when something happens to a trial."""


class ReportingCallback(tune.Callback):
    """Hands every report on, and says how each trial ended."""

    def __init__(
        self,
        tracker: SweepTracker,
        sweep: Sweep,
        trials: dict[str, PlannedTrial],
        inputs: Inputs,
        watch: Watch,
    ):
        self._tracker, self._sweep, self._trials = tracker, sweep, trials
        self._inputs, self._watch = inputs, watch

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for a restore of its own, which is not used

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        planned = self._trials[str(trial)]
        assert planned.experiment is not None
        self._tracker.start(planned, *self._inputs.of(planned.experiment))
        self._watch(planned, "running", self._rounds(trial), self._value(trial), "")

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        hash = str(trial)
        if "actors" in result:
            self._tracker.actors(hash, result["actors"])
        self._tracker.log(hash, result["records"])
        planned, value = self._trials[hash], result.get(self._sweep.metric)
        if resumed := result["resumed"]:
            self._watch(planned, "running", resumed, None, f"goes on after round {resumed}")
        self._watch(planned, "running", result["rounds"], value, "")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result
        state, reason = self._ending(str(trial), result)
        if result.get("clients") is not None:
            self._tracker.clients(str(trial), result["clients"])
        digest = result.get("model_sha256")
        tags = {"rayfl.model_sha256": digest} if digest else {}
        self._end(trial, state, reason, result.get("traceback", ""), tags)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        path = trial.error_file
        text = Path(path).read_text() if path and Path(path).exists() else ""
        lines = [line for line in text.strip().splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else "its process died"
        for line in lines:
            if "Error: " in line or "died" in line:
                reason = line.strip()
                break
        self._end(trial, "failed", reason, text, {})

    def _ending(self, hash: str, result: dict) -> tuple[State, str]:
        if "failed" in result:
            return "failed", result["failed"]
        if result.get("stopped"):
            return "stopped_early", result["stopped"]
        experiment = self._trials[hash].experiment
        assert experiment is not None
        if result["rounds"] >= experiment.federation.rounds:
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
        self._tracker.end(hash, state, reason, text, tags)
        if state in SUCCEEDED:
            self._forget(hash)
        rounds, value = self._rounds(trial), self._value(trial)
        self._watch(self._trials[hash], state, rounds, value, reason)

    def _forget(self, hash: str) -> None:
        """Delete the checkpoints of a trial that needs them no more: client memories take much room."""
        experiment = self._trials[hash].experiment
        assert experiment is not None
        Storage(below(storage(experiment), hash)).remove(self._sweep.name)

    def _rounds(self, trial: Any) -> int:
        return int((trial.last_result or {}).get("rounds", 0))

    def _value(self, trial: Any) -> float | None:
        return (trial.last_result or {}).get(self._sweep.metric)


def log_path(sweep: Sweep, hash: str) -> Path:
    """Where the traceback of a failed trial is, on the machine that runs the command."""
    return Path("sweeps") / sweep.name / "failed" / f"{hash}.txt"
