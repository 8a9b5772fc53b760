"""Memory of processes, with each page counted once."""

import contextlib
import threading
from collections.abc import Iterable, Iterator

import psutil


def pss(pids: Iterable[int]) -> float:
    """Return the bytes of these processes; shared pages are divided among their users."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += psutil.Process(pid).memory_full_info().pss
    return total


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


class Peak:
    """Peak memory of a process and its descendants, sampled every `interval` s."""

    def __init__(self, pid: int, interval: float = 0.5):
        self.bytes = 0.0
        self._pid, self._interval = pid, interval
        self._over = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator["Peak"]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            self.bytes = max(self.bytes, pss(tree(self._pid)))
