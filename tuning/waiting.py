"""A sweep does not wait for ever for nodes that a cluster is to add."""

import time
from typing import Any

import ray
from ray import tune

from rayfl.runtime.placement import Placement, refusal, room_on

LOOK_SECONDS = 1.0


class Waiting(tune.Callback):
    """Ends a sweep if nothing runs, and its nodes do not come, for as long as an experiment would wait."""

    def __init__(self, placement: Placement):
        self._placement = placement
        self._last_room = self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for a restore of its own, which is not used

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """ConfigError if the time is over."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if any(trial.status == "RUNNING" for trial in trials) or self._has_room():
            self._last_room = now
        elif now - self._last_room > self._placement.wait_s:
            raise refusal(self._placement, self._placement.wait_s)

    def _has_room(self) -> bool:
        """Whether there are nodes for a trial, free or not."""
        share = self._placement
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(room_on(node, share.cpus, share.gpus) for node in nodes) >= share.actors
