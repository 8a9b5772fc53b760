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

    open: set[str]
    """Ids of the trials without a result."""
    values: list[float] = field(default_factory=list)


class SeedAveragedSearcher(Searcher):
    """Get points from another searcher, and report the mean over the seeds to it.

    Results of earlier commands are reported at once. The same seed gives the same suggestions, so the search
    resumes where it stopped.
    """

    def __init__(
        self,
        inner: Any,
        num_samples: int,
        trials_of: Callable[[Point], list[PlannedTrial]],
        value_of: Callable[[PlannedTrial], float | None],
        config_of: Callable[[PlannedTrial], dict[str, Any]],
        metric: str,
        mode: str,
    ):
        """`trials_of` returns the checked trials of a point, `value_of` the result of an ended trial by its
        hash, and `config_of` Tune's config of a trial."""
        super().__init__(metric=metric, mode=mode)
        self._inner, self._left = inner, num_samples
        self._trials_of, self._value_of, self._config_of = trials_of, value_of, config_of
        self._suggested = 0
        self._waiting: list[tuple[str, PlannedTrial]] = []
        self._suggestions: dict[str, _Suggestion] = {}
        self._suggestion_of: dict[str, str] = {}
        self._seen: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for its own restore, which rayfl does not use

    def suggest(self, trial_id: str) -> Any:
        while not self._waiting:
            if self._left == 0:
                return Searcher.FINISHED
            if not self._ask():
                return None
        suggestion, trial = self._waiting.pop(0)
        self._suggestion_of[trial_id] = suggestion
        self._suggestions[suggestion].open.add(trial_id)
        return self._config_of(trial)

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        suggestion = self._suggestion_of.pop(trial_id)
        self._suggestions[suggestion].open.discard(trial_id)
        value = (result or {}).get(self.metric)
        if value is not None and not error and "failed" not in (result or {}):
            self._suggestions[suggestion].values.append(value)
        self._tell(suggestion)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing; a resumed search gets its results from MLflow."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""

    def _ask(self) -> bool:
        """Get the next point. Return False if there is none yet."""
        suggestion = f"point-{self._suggested}"
        point = self._inner.suggest(suggestion)
        if point is None or point == Searcher.FINISHED:
            return False
        self._left, self._suggested = self._left - 1, self._suggested + 1
        self._suggestions[suggestion] = _Suggestion(set())
        for trial in self._trials_of(point):
            value = self._value_of(trial)
            if value is not None:
                self._suggestions[suggestion].values.append(value)
            elif trial.problem is None and trial.hash not in self._seen:
                self._seen.add(trial.hash)
                self._waiting.append((suggestion, trial))
        self._tell(suggestion)
        return True

    def _tell(self, suggestion: str) -> None:
        """Report the result of a point once all of its trials have ended."""
        found = self._suggestions[suggestion]
        if found.open or any(waiting == suggestion for waiting, _ in self._waiting):
            return
        if found.values:
            self._inner.on_trial_complete(suggestion, {self.metric: fmean(found.values)})
        else:
            self._inner.on_trial_complete(suggestion, error=True)
