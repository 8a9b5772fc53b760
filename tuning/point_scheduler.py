"""Ray Tune scheduler that decides on points: the seeds of a point go on, or end, together.

At each round of decision, Ray Tune's own scheduler is told the mean over the seeds of one point after the
other, in the order of the points. What it decides therefore depends on no trial's speed, and a sweep that is
started again decides as it did before. A trial that has to wait is paused: it leaves its resources to others,
and goes on from its checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler


@dataclass(frozen=True)
class PointTrials:
    """The trials of one point, one for each seed."""

    trial_id: str
    """Name of the point; Ray Tune's schedulers ask for it by this name."""
    hashes: tuple[str, ...]
    rounds: tuple[int, ...]
    """Rounds of decision, ascending."""


class PointScheduler(TrialScheduler):
    """Decides on the points of one group, whose trials are compared."""

    def __init__(
        self,
        inner: Any,
        metric: str,
        points: Sequence[PointTrials],
        earlier: Mapping[str, Mapping[int, float]],
    ):
        """`inner` is Ray Tune's scheduler; `points` and `earlier` may grow.

        `earlier` has the metric by round of each trial that earlier commands have ended.
        """
        super().__init__()
        self._inner, self._metric, self._points, self._earlier = inner, metric, points, earlier
        self._values: dict[str, dict[int, float]] = {}
        self._ended: set[str] = set()
        self._known = 0
        """Points that `inner` knows."""
        self._decided: dict[int, int] = {}
        """Number of points, from the first, that are decided on at each round."""
        self._ends: dict[str, int] = {}
        """Round at which a trial ends with its point."""
        self._passed: dict[str, int] = {}
        """Last round at which a trial was told to go on."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._ended.discard(str(trial))  # after a failure it starts again

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._ended.add(str(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._ended.add(str(trial))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        self._note(trial, result)
        self._ended.add(str(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        hash, round = str(trial), result["rounds"]
        self._note(trial, result)
        if round not in self._decided:
            return TrialScheduler.CONTINUE
        self._decide()
        if hash in self._ends:
            return TrialScheduler.STOP
        if self._passed.get(hash, 0) >= round:
            return TrialScheduler.CONTINUE
        # Without Ray Tune's checkpoint, which several nodes would have to share: it has its own.
        tune_controller.pause_trial(trial, should_checkpoint=False)
        return TrialScheduler.NOOP

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        self._decide()
        trials = tune_controller.get_trials()
        for trial in trials:
            if trial.status == Trial.PAUSED and str(trial) in self._ends:
                tune_controller.stop_trial(trial)
        for trial in trials:
            last = (trial.last_result or {}).get("rounds", 0)
            if trial.status == Trial.PAUSED and self._passed.get(str(trial), 0) >= last:
                return trial
        return next((trial for trial in trials if trial.status == Trial.PENDING), None)

    def debug_string(self) -> str:
        return self._inner.debug_string()

    def _note(self, trial: Any, result: dict) -> None:
        """Keep the values that a trial has reported."""
        values = self._values.setdefault(str(trial), {})
        for round, metrics in result.get("records", ()):
            if self._metric in metrics:
                values[round] = metrics[self._metric]

    def _decide(self) -> None:
        """Decide on each point whose seeds have all got to a round, or have ended before it."""
        for point in self._points[self._known :]:
            self._inner.on_trial_add(None, point)
            for round in point.rounds:
                self._decided.setdefault(round, 0)
        self._known = len(self._points)
        for round in sorted(self._decided):
            for point in self._points[self._decided[round] :]:
                if any(self._is_awaited(hash, round) for hash in point.hashes):
                    break  # the points after it wait for it
                self._decided[round] += 1
                self._decide_on(point, round)

    def _is_awaited(self, hash: str, round: int) -> bool:
        has_ended = hash in self._ended or hash in self._earlier
        return not has_ended and round not in self._values.get(hash, {})

    def _decide_on(self, point: PointTrials, round: int) -> None:
        found = [self._earlier.get(h) or self._values.get(h, {}) for h in point.hashes]
        values = [values[round] for values in found if round in values]
        if not values or round not in point.rounds:
            return
        result = {"rounds": round, self._metric: fmean(values)}
        decision = self._inner.on_trial_result(_NoController(), point, result)
        for hash in point.hashes:
            if decision == TrialScheduler.STOP:
                self._ends[hash] = round
            else:
                self._passed[hash] = max(round, self._passed.get(hash, 0))


class _NoController:
    """A scheduler's view of the other trials: none, so that it waits for none."""

    def get_live_trials(self) -> list[Any]:
        return []
