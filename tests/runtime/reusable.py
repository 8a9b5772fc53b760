"""A client actor for many tests, in a module that Ray's workers can import."""

from typing import Any

from rayfl.runtime.client import Client


class ReusableClient(Client):
    """A client that can change its experiment: starting a process costs seconds, a test does not."""

    def __init__(self) -> None:
        pass

    def become(self, arguments: dict[str, Any]) -> None:
        """Take over another experiment."""
        super().__init__(**arguments)
