"""Lease of a sweep: one process at a time runs its trials, whichever machine or cluster it is on.

The sweep's MLflow run has a tag for each process that claims it. A process writes its claim, and only then
reads the others': so of two that come at once at least one sees the other. A claim is renewed while its
process lives. One that is not renewed, or whose process is gone from this machine, is taken over.
"""

import contextlib
import json
import os
import random
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from rayfl.errors import ConfigError, RunError
from rayfl.tracking.outages import is_outage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CLAIM = "rayfl.claim."
RENEWED_SECONDS = 5.0
LOST_SECONDS = 20.0
"""Time without a renewal after which the process of another machine is taken to be gone."""


@dataclass(frozen=True)
class Claim:
    """Claim of a process on a sweep."""

    host: str
    machine: str
    """Differs between machines, their restarts, and containers."""
    pid: int
    since: float
    """Seconds since 1970."""
    holds: bool = False
    """True once no other process claims the sweep."""
    renewed: int = 0
    """Number of renewals."""

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {began}"


class Lease:
    """Claim of this process on one sweep, renewed until `release`."""

    def __init__(self, client: "MlflowClient", run_id: str, sweep: str):
        """Claim the sweep whose MLflow run this is. Raises ConfigError if another process runs it."""
        self._client, self._run_id, self._sweep = client, run_id, sweep
        self._key = CLAIM + uuid.uuid4().hex[:8]
        self._claim = Claim(socket.gethostname(), _machine(), os.getpid(), time.time())
        self._is_lost, self._closing = False, threading.Event()
        self._acquire()
        self._renewer = threading.Thread(target=self._renew, name="sweep-lease", daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Raise RunError if another process has taken the sweep over."""
        if self._is_lost:
            raise RunError(
                f"sweep '{self._sweep}' was taken over by another command, because this one was not heard of "
                f"for {LOST_SECONDS:.0f} s"
            )

    def release(self) -> None:
        """Give the sweep back."""
        self._closing.set()
        self._renewer.join()
        self._delete(self._key)

    def _acquire(self) -> None:
        while True:
            self._write()
            others = self._others()
            if not others:
                self._claim = replace(self._claim, holds=True)
                self._write()
                return
            living = {key: claim for key, claim in others.items() if self._lives(key, claim)}
            for key in others.keys() - living.keys():
                self._delete(key)
            if not living:
                continue
            self._delete(self._key)
            holder = next((claim for claim in living.values() if claim.holds), None)
            if holder is not None:
                raise ConfigError(
                    f"sweep '{self._sweep}' is run by {holder}; wait until it ends, or stop it"
                )
            time.sleep(random.uniform(0.1, 1.0))  # several came at once: one will be first

    def _lives(self, key: str, claim: Claim) -> bool:
        """Return True if the process of a claim is there."""
        if claim.machine == self._claim.machine:
            return claim.pid != os.getpid() and _exists(claim.pid)
        until = time.monotonic() + LOST_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, RENEWED_SECONDS))
            now = self._others().get(key)
            if now is None:
                return False
            if now.renewed != claim.renewed:
                return True
        return False

    def _renew(self) -> None:
        while not self._closing.wait(RENEWED_SECONDS):
            try:
                tags = self._client.get_run(self._run_id).data.tags
                if self._key not in tags:
                    self._is_lost = True
                    return
                self._claim = replace(self._claim, renewed=self._claim.renewed + 1)
                self._write()
            except Exception as error:
                if not is_outage(error):
                    return  # the run is deleted, which whoever writes to it will say

    def _write(self) -> None:
        self._client.set_tag(self._run_id, self._key, json.dumps(asdict(self._claim)))

    def _others(self) -> dict[str, Claim]:
        tags = self._client.get_run(self._run_id).data.tags
        found = {key: value for key, value in tags.items() if key.startswith(CLAIM)}
        return {key: Claim(**json.loads(value)) for key, value in found.items() if key != self._key}

    def _delete(self, key: str) -> None:
        with contextlib.suppress(MlflowException):  # somebody else has
            self._client.delete_tag(self._run_id, key)


def _machine() -> str:
    """Return what identifies this machine since its start, and this container on it."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux alone has these
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
