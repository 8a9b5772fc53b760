"""Ray Tune searcher that runs every suggested point with every seed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ray.tune.search import Searcher

from tuning.plan import PlannedTrial
from tuning.space import Point


@dataclass
class _Suggestion:
    """Suggested point whose trials run."""

    open: set[str] = field(default_factory=set)
    """Hashes of the trials without a result."""
    values: list[float] = field(default_factory=list)


class SeedAveragedSearcher(Searcher):
    """Get points from another searcher, and report the mean over the seeds to it.

    The other searcher is told results only when it is asked for a point, and what it was told then is
    recorded. So a search that is started again tells and asks in the same order, and gets the same points.
    """

    def __init__(
        self,
        inner: Any,
        num_samples: int,
        trials_of: Callable[[Point], list[PlannedTrial]],
        value_of: Callable[[PlannedTrial], float | None],
        config_of: Callable[[PlannedTrial], dict[str, Any]],
        told: list[list[int]],
        record_told: Callable[[list[list[int]]], None],
        metric: str,
        mode: str,
    ):
        """`trials_of` returns the checked trials of a point, `value_of` the result of an ended trial, and
        `config_of` Tune's config of a trial. `told`: for each point, the suggestions whose results were told
        before it, as earlier commands have given them to `record_told`."""
        super().__init__(metric=metric, mode=mode)
        self._inner, self._num_samples = inner, num_samples
        self._told, self._record_told = told, record_told
        self._trials_of, self._value_of, self._config_of = trials_of, value_of, config_of
        self._waiting: list[PlannedTrial] = []
        self._suggestions: list[_Suggestion] = []
        self._done: list[int] = []
        """Suggestions whose trials have all ended, in this order."""
        self._known: set[int] = set()
        """Suggestions whose results were told."""
        self._suggestion_of: dict[str, int] = {}
        """Number of the suggestion of each trial, by hash."""
        self._hash_of: dict[str, str] = {}
        """Hash of each trial by Tune's id."""
        self._last: dict[str, float] = {}
        """Last value of each trial by Tune's id."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for its own restore, which rayfl does not use

    def suggest(self, trial_id: str) -> Any:
        while not self._waiting:
            if len(self._suggestions) == self._num_samples:
                return Searcher.FINISHED
            if not self._ask():
                return None
        trial = self._waiting.pop(0)
        self._hash_of[trial_id] = trial.hash
        return self._config_of(trial)

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        if self.metric in result:
            self._last[trial_id] = result[self.metric]

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        # A trial that ends while it is paused comes without its result.
        value = (result or {}).get(self.metric, self._last.get(trial_id))
        hash = self._hash_of.pop(trial_id)
        number = self._suggestion_of[hash]
        suggestion = self._suggestions[number]
        suggestion.open.discard(hash)
        if value is not None and not error and "failed" not in (result or {}):
            suggestion.values.append(value)
        if not suggestion.open:
            self._done.append(number)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing; a resumed search gets its results from MLflow."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""

    def _ask(self) -> bool:
        """Get the next point. Return False if there is none yet."""
        number = len(self._suggestions)
        if number < len(self._told):
            news = self._told[number]
        else:
            news = [done for done in self._done if done not in self._known]
        if not set(news) <= set(self._done):
            return False  # it will have been done again
        for done in news:
            if done not in self._known:
                self._tell(done)
        point = self._inner.suggest(f"point-{number}")
        if point is None or point == Searcher.FINISHED:
            return False
        if number == len(self._told):
            self._told.append(news)
            self._record_told(self._told)
        suggestion = _Suggestion()
        self._suggestions.append(suggestion)
        for trial in self._trials_of(point):
            value = self._value_of(trial)
            if value is not None:
                suggestion.values.append(value)
            elif trial.problem is None and trial.hash not in self._suggestion_of:
                self._suggestion_of[trial.hash] = number
                suggestion.open.add(trial.hash)
                self._waiting.append(trial)
        if not suggestion.open:
            self._done.append(number)
        return True

    def _tell(self, number: int) -> None:
        """Report the result of a point whose trials have all ended."""
        values = self._suggestions[number].values
        if values:
            self._inner.on_trial_complete(f"point-{number}", {self.metric: fmean(values)})
        else:
            self._inner.on_trial_complete(f"point-{number}", error=True)
        self._known.add(number)
