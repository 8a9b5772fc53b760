"""A client actor for many tests, in a module that Ray's workers can import."""

from typing import Any

from rayfl.runtime.client import ClientActor
from rayfl.training.process import configure_process
from rayfl.training.units import WorkUnit


class ReusableClient(ClientActor):
    """A client that `begin` gives its experiment: starting a process costs seconds, a test does not."""

    def __init__(self) -> None:
        configure_process(threads=1)
        self.device, self.share = "cpu", 1.0

    def begin(self, *spec: Any) -> None:
        super().begin(*spec)
        self._taken: list[WorkUnit] = []

    def train(self, unit: WorkUnit, *given: Any) -> Any:
        self._taken.append(unit)
        return super().train(unit, *given)

    def taken(self) -> list[WorkUnit]:
        """The units of this experiment so far, in the order in which they came."""
        return self._taken
