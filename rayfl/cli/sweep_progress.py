"""Progress of a sweep: the state of each trial, the best one, and the time that is left."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayfl.analysis.states import ENDED, counted
from rayfl.cli.terminal import duration

_SHARE = 20
"""The best points are looked for in at most one of so many seconds."""

if TYPE_CHECKING:
    from tuning.callbacks import TrialUpdate
    from tuning.plan import PlannedTrial, SweepPlan


@dataclass
class TrialStatus:
    """Last known state of a trial."""

    trial: "PlannedTrial"
    state: str = ""
    rounds: int = 0
    value: float | None = None
    first: int = 0
    """Round after which this command resumed the trial."""
    ran: bool = False
    """True if this command ran the trial."""

    @property
    def summary(self) -> dict[str, float]:
        """Summaries of the trial's rounds, which MLflow alone has."""
        return {}

    @property
    def name(self) -> str:
        """The name of the trial's run."""
        return self.trial.name


class SweepProgress:
    """States of the trials of one sweep, updated while they run."""

    def __init__(self) -> None:
        self.plan: SweepPlan | None = None
        """Plan of the sweep, once it is made."""
        self._trials: dict[str, TrialStatus] = {}
        self._best: tuple[tuple[str, ...], str] = (), ""
        """States of the trials, and the text of the best points at that time."""
        self._best_until = 0.0
        """Time up to which that text stays: a large sweep's takes a second."""
        self._began: tuple[float, float] | None = None
        """Time of the first finished rounds, and the number of trials that they amount to."""

    def update(self, update: "TrialUpdate") -> bool:
        """Record an update of a trial. Return True if its state has changed."""
        status = self._trials.setdefault(update.trial.hash, TrialStatus(update.trial))
        changed = status.state != update.state
        status.state, status.rounds, status.value = update.state, update.rounds, update.value
        if update.state == "running":
            status.ran, status.first = True, update.rounds if update.reason else status.first
            # The first finished round shows that the actors have started.
            if self._began is None and update.rounds > status.first:
                self._began = time.monotonic(), self._done_here()
        return changed

    @property
    def running(self) -> list[TrialStatus]:
        return [status for status in self._all() if status.state == "running"]

    def rounds(self, status: TrialStatus) -> int:
        """Return the largest number of rounds that the trial runs."""
        assert self.plan is not None
        return self.plan.sweep.rounds(status.trial.config)

    def counts(self) -> str:
        """Return the number of trials in each state, as text."""
        states = Counter(status.state for status in self._all())
        shown = counted(states.elements())
        done = sum(states[state] for state in ENDED)
        text = f"{done} of {self._count()} trials done" + (f" ({shown})" if shown else "")
        return text + (f", {states['running']} running" if states["running"] else "")

    def best(self) -> str:
        """Return the best point of each task so far, by the rule of the table at the end, as text."""
        trials = self._all()
        states = tuple(status.state for status in trials)
        now = time.monotonic()
        if self.plan is not None and states != self._best[0] and now >= self._best_until:
            from rayfl.cli.sweep_summary import best_in_words
            from tuning.results import summary

            sweep = self.plan.sweep
            self._best = states, best_in_words(summary(trials, sweep), len(sweep.seeds))
            took = time.monotonic() - now
            self._best_until = now + _SHARE * took
        return self._best[1]

    def time_left(self) -> str:
        """Estimate the remaining time from the trials that this command has run."""
        if self._began is None:
            return ""
        began, before = self._began
        done = self._done_here() - before
        left = sum(1 - status.rounds / self.rounds(status) for status in self.running)
        left += self._count() - len(self._trials)
        return f"{duration((time.monotonic() - began) / done * left)} left" if done > 0 else ""

    def _done_here(self) -> float:
        """Return the number of trials that this command has run, with fractions for partial ones."""
        ran = [(status, self.rounds(status)) for status in self._all() if status.ran]
        return sum(
            ((status.rounds if status.state == "running" else rounds) - status.first) / rounds
            for status, rounds in ran
        )

    def _count(self) -> int:
        """Return the number of all trials, including those that a searcher will suggest."""
        assert self.plan is not None
        infeasible = sum(trial.problem is not None for trial in self.plan.trials)
        return max(self.plan.count + infeasible, len(self._trials))

    def _all(self) -> list[TrialStatus]:
        """Return a copy, because the display's thread reads it during updates."""
        return list(self._trials.values())
