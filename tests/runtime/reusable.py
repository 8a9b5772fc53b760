"""A client actor for many tests, in a module that Ray's workers can import."""

from rayfl.runtime.client import ClientActor
from rayfl.training.process import configure_process


class ReusableClient(ClientActor):
    """A client that `begin` gives its experiment: starting a process costs seconds, a test does not."""

    def __init__(self) -> None:
        configure_process(threads=1)
        self.device, self.share = "cpu", 1.0
