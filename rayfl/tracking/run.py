"""The MLflow run of an experiment, from its start to its end."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from rayfl.config.schema import Experiment
from rayfl.errors import ConfigError
from rayfl.text import redacted
from rayfl.tracking import sqlite
from rayfl.tracking.defaults import database_file, store_address

if TYPE_CHECKING:
    from rayfl.tracking.mlflow import RunTracker
    from rayfl.tracking.store import TrackingStore

MODEL = "model/model.safetensors"
"""Artifact of a run: its final model."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


def open_store(config: Experiment) -> "TrackingStore | None":
    """The store that the config names; None without tracking."""
    if not config.tracking.enabled:
        return None
    from rayfl.tracking.store import TrackingStore  # imports mlflow, which takes seconds

    return TrackingStore(config.tracking.uri, config.tracking.experiment)


def check_store(config: Experiment) -> None:
    """Raise ConfigError if the store is a file that cannot be used, before anything that takes time."""
    uri, key = store_address(config.tracking.uri, "tracking.uri")
    file = database_file(uri)
    if not config.tracking.enabled or file is None:
        return
    try:
        sqlite.check(file, writes=True)
    except sqlite.StoreFileError as error:
        message, other = f"{error}, or set tracking.enabled=false", ("tracking.enabled",)
        raise ConfigError(message, key, redacted(uri), keys=other) from error


@contextlib.contextmanager
def tracked(
    store: "TrackingStore | None",
    config: Experiment,
    dataset: str,
    tags: Mapping[str, str],
    run_id: str | None,
) -> Iterator["RunTracker | None"]:
    """The MLflow run, ended as FINISHED, FAILED or KILLED with the summary of what was done.

    `dataset`: its name; `tags`: of a new run; `run_id`: the run to go on with, if not None. Raises RunError
    at the end if the run was deleted meanwhile.
    """
    if store is None:
        yield None
        return
    from rayfl.tracking.mlflow import RunTracker

    tracker = RunTracker(store, config, dataset, run_id, tags)
    with ending(tracker.finish):
        if run_id is None:
            tracker.describe_config()
        yield tracker
    if tracker.lost:
        raise tracker.lost


@contextlib.contextmanager
def ending(finish: Callable[[Status], None]) -> Iterator[None]:
    """Call `finish` at the end of the context: FINISHED, KILLED by an interrupt, or FAILED."""
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        finish(status)
