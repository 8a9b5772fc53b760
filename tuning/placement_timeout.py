"""A sweep does not wait for ever for nodes that a cluster is to add."""

import time
from typing import Any

from ray import tune

from rayfl.runtime.placement import Placement, could_hold, refusal

LOOK_SECONDS = 1.0


class PlacementTimeout(tune.Callback):
    """Ends a sweep if nothing runs, and its nodes do not come, for as long as an experiment would wait."""

    def __init__(self, placement: Placement):
        self._placement = placement
        self._last_room = self._looked = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """ConfigError if the time is over."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if any(trial.status == "RUNNING" for trial in trials) or could_hold(self._placement):
            self._last_room = now
        elif now - self._last_room > self._placement.autoscale_timeout_s:
            raise refusal(self._placement, self._placement.autoscale_timeout_s)
