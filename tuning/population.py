"""Ray Tune scheduler of one population: what it draws depends on the population and the round alone.

Ray Tune's own draws from the global generators. What it drew would depend on which of several populations
met first, and, in a sweep that is started again, on the rounds at which the command before has decided.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from ray.tune.schedulers import PopulationBasedTraining


class Population(PopulationBasedTraining):
    """Synchronous population-based training of the trials of one group."""

    def __init__(self, name: str, on_exploit: Callable[[Any, int], None], **options: Any):
        """`name`: of the group, from which the draws come; `options`: those of Ray Tune's scheduler.

        `on_exploit` is called with a trial that takes over another one, and the round, before any goes on.
        """
        super().__init__(
            **options, synch=True
        )  # so that results do not depend on the trials' speed
        self._name, self._on_exploit = name, on_exploit

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        random.seed(f"{self._name} {result['rounds']}")
        np.random.seed(random.getrandbits(32))  # noqa: NPY002
        before = {each: each.config for each in tune_controller.get_trials()}
        decision = super().on_trial_result(tune_controller, trial, result)
        for each, config in before.items():
            if each.config is not config:
                self._on_exploit(each, result["rounds"])
        return decision
