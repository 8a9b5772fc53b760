"""Time limit of a sweep for the nodes that an autoscaler has to add."""

import time
from typing import Any

from ray import tune

from rayfl.runtime.placement import Placement, could_hold, refusal

CHECK_SECONDS = 1.0


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
