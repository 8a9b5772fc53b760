"""Outages of the tracking store: which errors are temporary, and calls that wait for the store."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from mlflow.exceptions import MlflowException

from rayfl.errors import RunError, first_line

PATIENCE_SECONDS = 300.0
"""Time that a call waits for a store before its content is lost."""
LONGEST_PAUSE_SECONDS = 15.0
# Error codes of a store that is available and rejects the call. All others may be temporary: no connection, a
# time-out, a locked sqlite file.
_REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
}


class OutageError(RunError):
    """The tracking store was unavailable for too long."""


def is_outage(error: Exception) -> bool:
    """Return True if an error of MLflow may be temporary."""
    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    return isinstance(error, OSError)  # base class of the HTTP library's errors


def retry_during_outage(uri: str, call: Callable[[], Any]) -> Any:
    """Call until the store is available, and return the result. Raises OutageError after some minutes."""
    began, pause = time.monotonic(), min(1.0, LONGEST_PAUSE_SECONDS)
    while True:
        try:
            return call()
        except Exception as error:
            if not is_outage(error):
                raise
            away = time.monotonic() - began
            if away > PATIENCE_SECONDS:
                raise OutageError(
                    f"MLflow has been away for {away:.0f} s ({first_line(error)}), and has not got all of "
                    "the run; start its server, and go on from the last checkpoint",
                    *("tracking.uri", uri),
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class BackgroundWriter:
    """Thread that makes calls in order, so that training does not wait for a slow or unavailable store."""

    def __init__(self, uri: str):
        self._uri = uri
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], None]) -> None:
        """Add a call to the queue. Raises RunError if an earlier call failed."""
        self._raise_error()
        self._calls.put(call)

    def close(self) -> None:
        """Wait until all calls are made. Raises OutageError if the store is unavailable for some minutes."""
        self._closing.set()
        self._calls.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)  # with a timeout, so that an interrupt is noticed
        self._raise_error()

    def _raise_error(self) -> None:
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
        """Make a call; an outage ends it only once `close` waits for it."""
        while True:
            try:
                return retry_during_outage(self._uri, call)
            except OutageError:
                if self._closing.is_set():
                    raise
