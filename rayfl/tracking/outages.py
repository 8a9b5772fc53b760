"""Outages of the tracking store: which errors are temporary, and calls that wait for the store."""

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
    began, pause = time.monotonic(), 1.0
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
