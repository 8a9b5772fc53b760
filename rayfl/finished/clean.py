"""Find what no unfinished run needs among the checkpoints, and delete it.

Of a finished run the last checkpoint stays, without the clients' memories: its model can be exported,
evaluated, measured and started from; only more rounds of a method with memories are no longer possible. Of a
run that was deleted in MLflow nothing stays. What else there is may go on, or is unknown, and is left alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayfl.analysis.store import open_store, search_runs
from rayfl.errors import CheckpointError, ConfigError
from rayfl.provenance import trial_folder
from rayfl.resume import CONTINUES, ROUNDS
from rayfl.storage.checkpoint import SavedCheckpoint, before_the_run, newest_in
from rayfl.storage.manifest import manifest_name
from rayfl.storage.storage import Storage, below

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

MEMORIES = "memories"
_WRITTEN = re.compile(rf"(checkpoint|state|history)-\d+\.|{MEMORIES}/")
_UNTRACKED = re.compile(
    r"\d{8}-\d{6}-[0-9a-f]{6}"
)  # the time names the folder of a run without MLflow


@dataclass(frozen=True)
class Folder:
    """The checkpoints of one run."""

    parent: str
    name: str
    state: str
    """`finished`, `deleted`, or why it is left alone."""
    size: int
    """Bytes of all files."""
    unneeded: dict[str, int] = field(repr=False)
    """Bytes of each file that can be deleted, by its name."""

    @property
    def freed(self) -> int:
        """Bytes of what can be deleted."""
        return sum(self.unneeded.values())

    @property
    def location(self) -> str:
        return below(self.parent, self.name)

    def delete(self) -> None:
        """Delete what is not needed."""
        if not self.unneeded:
            return
        if self.state == "deleted":
            Storage(self.parent).remove(self.name)
            return
        storage = Storage(self.location)
        # In this order, so that no manifest is there without its state.
        for name in sorted(set(self.unneeded) - set(storage.sizes(MEMORIES))):
            storage.delete(name)
        storage.remove(MEMORIES)


def folders(directory: str, uri: str | None = None) -> list[Folder]:
    """List the folder of each run in a directory of checkpoints, the largest gain first.

    `uri`: MLflow store, whose runs tell what is finished and what was deleted; without one, only runs that
    were not tracked are known. Raises ConfigError if the directory, or a store that is named, cannot be read.
    """
    runs = _Runs.of(uri)
    with before_the_run():
        found = [
            _folder(runs, below(directory, config), config, name)
            for config in Storage(directory).folders()
            for name in Storage(below(directory, config)).folders()
        ]
    return sorted(found, key=lambda folder: -folder.freed)


@dataclass(frozen=True)
class _Runs:
    """Runs in MLflow."""

    by_id: "dict[str, Run]"
    by_folder: "dict[tuple[str, str], Run]"
    """Trials, by the hash of their config and the name of their folder."""

    @classmethod
    def of(cls, uri: str | None) -> "_Runs":
        try:
            client, _ = open_store(uri)
        except ConfigError:
            if uri is not None:
                raise
            return cls({}, {})
        by_id = {run.info.run_id: run for run in _search(client)}
        trials = (run for run in by_id.values() if "rayfl.sweep" in run.data.tags)
        return cls(
            by_id,
            {
                (tags.get("rayfl.config_hash", ""), trial_folder(tags["rayfl.sweep"], tags)): run
                for run in trials
                for tags in [run.data.tags]
            },
        )

    @property
    def begun_from(self) -> set[str]:
        """Ids of the runs that runs which have not ended go on from."""
        going_on = (run for run in self.by_id.values() if run.info.status != "FINISHED")
        return {run.data.tags.get(CONTINUES, "") for run in going_on}


def _search(client: "MlflowClient") -> Iterator["Run"]:
    """Yield all runs of experiments, those that were deleted too."""
    from mlflow.entities import ViewType

    everywhere = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
    return search_runs(client, everywhere, "tags.`rayfl.kind` = 'experiment'", deleted_too=True)


def _folder(runs: _Runs, parent: str, config: str, name: str) -> Folder:
    storage = Storage(below(parent, name))
    sizes = storage.sizes() | storage.sizes(MEMORIES)
    try:
        saved = newest_in(storage)
    except CheckpointError:
        return Folder(parent, name, "unreadable", sum(sizes.values()), {})
    run = runs.by_folder.get((config, name)) or runs.by_id.get(
        (saved.run_id if saved else None) or name
    )
    state = _state(runs, name, saved, run)
    unneeded = sizes if state == "deleted" else {}
    if state == "finished" and saved is not None:
        kept = {manifest_name(saved.round), saved.manifest.state, saved.manifest.history}
        unneeded = {n: sizes[n] for n in sizes if _WRITTEN.match(n) and n not in kept}
    return Folder(parent, name, state, sum(sizes.values()), unneeded)


def _state(runs: _Runs, name: str, saved: SavedCheckpoint | None, run: "Run | None") -> str:
    if run is not None and run.info.lifecycle_stage == "deleted":
        return "deleted"
    if saved is None or saved.round < saved.manifest.config[ROUNDS]:
        return "unfinished"
    if run is None:
        return "finished" if _UNTRACKED.fullmatch(name) else "unknown"
    if run.info.run_id in runs.begun_from:
        return "gone on from"
    has_ended = run.data.tags.get("rayfl.state", "finished") == "finished"
    return "finished" if run.info.status == "FINISHED" and has_ended else "unfinished"
