"""Ctrl-C and SIGTERM end a run in order: actors go, and MLflow gets the rounds that are finished."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 0.05  # time for the interpreter to leave the destructor


class Interrupts:
    """While it is entered, the first signal raises KeyboardInterrupt; a third one ends the process.

    `say` is called in a signal handler: it must neither wait nor print through Python's buffers.
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
        """Handle the signals; again, if someone else (Ray, when it starts) has taken one over."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind in (KeyboardInterrupt, SystemExit):
            return  # The process is about to end, and further signals must not disturb that.
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
        """Python drops what is raised while it frees an object: raise the interrupt once more."""
        if unraisable.exc_type is not KeyboardInterrupt:
            self._hook(unraisable)
            return
        self._dropped = True
        arguments = threading.main_thread().ident, signal.SIGINT
        threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, arguments).start()
