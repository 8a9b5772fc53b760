"""A trial as Ray Tune sees it: a class trainable in a placement group with a bundle for each client actor.

Tune's config of a trial is `spec` and, under their dotted keys, the hyper-parameters that population-based
training changes. Tune's checkpoints are whole ones of rayfl, which an exploit takes over.
"""

from typing import Any

from ray import tune
from ray.util import get_current_placement_group

from rayfl.training.process import configure_process
from tuning.config import Sweep
from tuning.shared_inputs import SharedInputs
from tuning.trial import Execution


class Trainable(tune.Trainable):
    """Executes one trial after the other."""

    def setup(self, config: dict[str, Any], shared: SharedInputs, sweep: Sweep) -> None:
        configure_process(threads=1)
        self.execution = Execution(shared, sweep, get_current_placement_group())
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        mutated = {key: value for key, value in new_config.items() if "." in key}
        # Not the config's hash: an exploit copies the whole config of the other trial.
        self.execution.begin(self.trial_name, new_config["spec"], mutated)
        return True

    def step(self) -> dict[str, Any]:
        return self.execution.step()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.execution.save(checkpoint_dir)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.execution.load(checkpoint)

    def cleanup(self) -> None:
        self.execution.close()
