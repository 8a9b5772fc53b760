"""What all parts of the GPU benchmark are told, and their experiment. It imports nothing slow by itself."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayfl.config.schema import Experiment

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/cifar10_lenet5.yaml")  # the papers' setting, but for the model
SMALL = ("clients=4", "cohort=2", "batch_size=4", "local_epochs=null", "local_steps=2")


@dataclass(frozen=True)
class Setup:
    """Where and how long a part runs."""

    device: str  # "cuda", or "cpu": a rehearsal in small
    npz: str  # the images
    out: Path
    deadline: float  # seconds since the epoch
    argument: str = ""
    curve_rounds: int = 100

    @property
    def small(self) -> bool:
        return self.device == "cpu"

    @property
    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self.deadline - time.time()

    def overrides(self, *own: str) -> list[str]:
        """The overrides of CONFIG that make the benchmarked experiment, as the command line takes them."""
        shared = [
            f"data={{name: npz, path: {self.npz}, augment: flip_crop}}",
            f"model.name={'lenet5' if self.small else 'resnet18'}",
            "tracking.enabled=false",
            "checkpoint.every=null",
        ]
        if self.small:
            shared += [f"federation.{given}" for given in SMALL] + ["resources.gpus_per_actor=0"]
        return [*shared, *own]

    def experiment(self, *own: str) -> "Experiment":
        from rayfl.config.schema import load_config

        return load_config(CONFIG, self.overrides(*own))
