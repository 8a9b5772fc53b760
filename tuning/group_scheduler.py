"""Ray Tune scheduler that has one scheduler for each group of comparable trials."""

from collections.abc import Callable, Hashable
from typing import Any

from ray.tune.schedulers import TrialScheduler


class GroupScheduler(TrialScheduler):
    """Pass each trial to the scheduler of its group, which sees only the trials of this group."""

    def __init__(self, make: Callable[[Hashable], Any], group_of: Callable[[Any], Hashable]):
        super().__init__()
        self._make, self._group_of = make, group_of
        self._groups: dict[Hashable, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for its own restore, which rayfl does not use

    def _for(self, trial: Any) -> Any:
        group = self._group_of(trial)
        if group not in self._groups:
            self._groups[group] = self._make(group)
        return self._groups[group]

    def _view(self, controller: Any, group: Hashable) -> Any:
        return _GroupView(controller, lambda trial: self._group_of(trial) == group)

    def _call(self, method: str, controller: Any, trial: Any, *arguments: Any) -> Any:
        view = self._view(controller, self._group_of(trial))
        return getattr(self._for(trial), method)(view, trial, *arguments)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._call("on_trial_add", tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._call("on_trial_error", tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        return self._call("on_trial_result", tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        self._call("on_trial_complete", tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._call("on_trial_remove", tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        for group, scheduler in self._groups.items():
            chosen = scheduler.choose_trial_to_run(self._view(tune_controller, group))
            if chosen is not None:
                return chosen
        return None

    def debug_string(self) -> str:
        return "; ".join(scheduler.debug_string() for scheduler in self._groups.values())


class _GroupView:
    """View of Tune's controller with the trials of one group."""

    def __init__(self, controller: Any, belongs: Callable[[Any], bool]):
        self._controller, self._belongs = controller, belongs

    def get_trials(self) -> list[Any]:
        return [trial for trial in self._controller.get_trials() if self._belongs(trial)]

    def get_live_trials(self) -> Any:
        return [trial for trial in self._controller.get_live_trials() if self._belongs(trial)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)
