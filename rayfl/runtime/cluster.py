"""Connection to Ray."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from rayfl.data.datasets import Dataset
from rayfl.errors import ConfigError, first_line
from rayfl.training.process import machine_memory


class RayFolder:
    """The directory that Ray makes for a cluster; nobody needs it once that has ended, but for its logs."""

    def __init__(self, directory: str | None = None):
        """`directory`: that of a cluster which this process starts, and ends; None: it is not ours."""
        self._directory = directory

    def keep(self) -> str | None:
        """Keep it after the end; return where its logs are, None if it is not ours."""
        directory, self._directory = self._directory, None
        return directory and f"{directory}/logs"

    def delete(self) -> None:
        """Delete it, unless it is to be kept."""
        if self._directory is None:
            return
        shutil.rmtree(self._directory, ignore_errors=True)
        latest = Path(self._directory).with_name("session_latest")
        with contextlib.suppress(OSError):  # another run may have made it its own
            if os.readlink(latest) == self._directory:
                latest.unlink()


@contextlib.contextmanager
def connected(address: str | None, object_store_gb: float | None = None) -> Iterator[RayFolder]:
    """Connection to the running cluster at `address`, or to a fresh one on this machine for None.

    `object_store_gb` is the memory of the fresh one's object store; None: Ray chooses. A fresh one leaves
    its logs on disk if what runs on it fails; the error has a note that says where.
    """
    if (
        ray.is_initialized()
    ):  # a notebook, or the tests: the caller's connection, and theirs to close
        yield RayFolder()
        return
    try:
        _check_reachable(address)
        with _signals_wait() if address is None else contextlib.nullcontext():
            context: Any = ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
                object_store_memory=int(object_store_gb * 1e9) if object_store_gb else None,
            )
    except Exception as error:  # Ray raises plain ones too
        if address is None:
            raise _not_started(object_store_gb, error) from error
        raise ConfigError(
            f"no Ray cluster answers there ({first_line(error)}); start one "
            "with `ray start --head`, or leave ray.address empty to start one for this run (a cluster of "
            "another machine or user may want its token in ~/.ray/auth_token)",
            key="ray.address",
            value=address,
        ) from error
    folder = RayFolder(context.address_info["session_dir"] if address is None else None)
    try:
        yield folder
    except ConfigError:
        raise
    except Exception as error:
        if logs := folder.keep():
            error.add_note(f"Ray's logs are in {logs}")
        raise
    finally:
        ray.shutdown()
        folder.delete()


def _not_started(object_store_gb: float | None, error: Exception) -> ConfigError:
    """Describe why no cluster of this run's own could be started."""
    if object_store_gb is not None and isinstance(error, ValueError):
        return ConfigError(
            "must leave room for the processes in the "
            f"{machine_memory() / 1e9:.1f} GB of this machine; lower it, or leave it out",
            key="ray.object_store_gb",
            value=object_store_gb,
        )
    return ConfigError(
        f"Ray did not start on this machine ({first_line(error)}); its logs are in "
        "/tmp/ray/session_latest/logs; is the machine busy, or out of memory or disk? Try again, or start "
        "Ray with `ray start --head` and give ray.address=auto",
        keys=("ray.address",),
    )


def _check_reachable(address: str | None) -> None:
    """OSError within seconds if nobody listens at the address; Ray itself would try for minutes."""
    if address == "auto":
        # Where `ray start` notes its address; it may note a cluster that is gone.
        noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray/ray_current_cluster"
        address = os.environ.get("RAY_ADDRESS") or (noted.read_text() if noted.exists() else None)
    host, _, port = (address or "").strip().rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5).close()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """SIGINT and SIGTERM wait while Ray starts: interrupted half-way, it crashes when Python exits.

    They get their handlers back too: Ray replaces SIGTERM's by one that exits at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda number, frame: received.append(number)) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def put_dataset(data: Dataset) -> tuple[Any, Dataset]:
    """Put the data into the object store: a reference, and the data as they are there, read-only."""
    dataset = ray.put(data)
    return dataset, ray.get(dataset)
