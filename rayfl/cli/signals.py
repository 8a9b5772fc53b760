"""Clean end of a run at Ctrl-C or SIGTERM: actors end, and MLflow gets the finished rounds."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 0.05  # time in which the interpreter leaves the destructor


class Interrupts:
    """Context in which the first signal raises KeyboardInterrupt, and a third one ends the process.

    `say` is called in a signal handler: it must neither block nor print through Python's buffers.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._received = 0
        self._dropped = False

    def __enter__(self) -> "Interrupts":
        self._handlers = [signal.getsignal(number) for number in _SIGNALS]
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self.take()
        return self

    def take(self) -> None:
        """Install the handlers; again after Ray's start, which replaces one."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind in (KeyboardInterrupt, SystemExit):
            return  # The process is about to end, and further signals must not disturb its end.
        sys.unraisablehook = self._hook
        for number, handler in zip(_SIGNALS, self._handlers, strict=True):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self._dropped:
            self._dropped = False
            raise KeyboardInterrupt
        self._received += 1
        if self._received == 1:
            self._say("stopping")
            raise KeyboardInterrupt
        if self._received > 2:
            os._exit(130)
        self._say("still stopping; once more to quit at once")

    def _unraisable(self, unraisable: Any) -> None:
        """Raise the interrupt again if Python drops it, as it does in a destructor."""
        if unraisable.exc_type is not KeyboardInterrupt:
            self._hook(unraisable)
            return
        self._dropped = True
        arguments = threading.main_thread().ident, signal.SIGINT
        threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, arguments).start()
