"""Background thread for MLflow, so that training does not wait for a slow or unavailable store."""

import queue
import threading
from collections.abc import Callable

from rayfl.errors import RunError, first_line
from rayfl.tracking.outages import OutageError, retry_during_outage


class BackgroundWriter:
    """Thread that makes calls in order and repeats each one during an outage of the store."""

    def __init__(self, uri: str):
        self._uri = uri
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], None]) -> None:
        """Add a call to the queue. Raises RunError if an earlier call failed."""
        if self._error is not None:
            raise RunError(f"MLflow at {self._uri}: {first_line(self._error)}") from self._error
        self._calls.put(call)

    def close(self) -> None:
        """Wait until all calls are made. Raises OutageError if the store is unavailable for some minutes."""
        self._closing.set()
        self._calls.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)  # with a timeout, so that an interrupt is noticed
        if isinstance(self._error, RunError):
            raise self._error
        if self._error is not None:
            raise RunError(f"MLflow at {self._uri}: {first_line(self._error)}") from self._error

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._make(call)
            except BaseException as error:  # `put` or `close` raises it in the main thread
                self._error = error
                return

    def _make(self, call: Callable[[], None]) -> None:
        while True:
            try:
                return retry_during_outage(self._uri, call)
            except OutageError:
                if self._closing.is_set():
                    raise
