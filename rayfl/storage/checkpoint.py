"""Checkpoints: the complete state of a run in storage. A resumed run equals one that never stopped.

A run has one folder, `<dir>/<config hash>/<run>`, in a local directory or at any URI that pyarrow or
fsspec knows (s3://bucket/path). In it:

    checkpoint-00000120.json              manifest of round 120, with the SHA-256 of every file
    state-00000120.safetensors            w, buffers, the server state, the last mean update
    history-00000120.json                 the metrics of all rounds so far
    memories/17-00000118.safetensors      memory of client 17, whose last round was 118

The manifest is written last, and a file that a manifest names never changes. Therefore a process that dies
while it writes leaves the previous checkpoint intact. A client's memory is written once, even if several
checkpoints refer to it. Reading a checkpoint never unpickles or imports anything.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from rayfl.errors import CheckpointError, ConfigError, first_line
from rayfl.provenance import Provenance
from rayfl.storage.manifest import FORMAT, Manifest, check_content, manifest_name, manifests
from rayfl.storage.snapshot import Arrays, Memory, Snapshot
from rayfl.storage.storage import Storage, below, split


@dataclass(frozen=True)
class SavedCheckpoint:
    """Checkpoint in storage. Its files are read and verified when they are needed."""

    storage: Storage
    manifest: Manifest

    @property
    def round(self) -> int:
        return self.manifest.round

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run."""
        return self.manifest.run_id

    @property
    def path(self) -> str:
        """Path or URI of the manifest; see `open_named`."""
        return below(self.storage.location, manifest_name(self.round))

    def snapshot(self) -> Snapshot:
        """Read the state. Raises CheckpointError if a file is missing or damaged."""
        memories = {
            client: Memory(_round_of(name), lambda name=name: self._arrays(name))
            for client, name in self.manifest.memories.items()
        }
        return Snapshot(self.round, self._arrays(self.manifest.state), memories)

    def history(self) -> dict[int, dict[str, float]]:
        """Read the metrics by round. Raises CheckpointError if the file is missing or damaged."""
        rows = json.loads(self._read(self.manifest.history))
        return {int(round): metrics for round, metrics in rows.items()}

    def check(self) -> Snapshot:
        """Return the state; CheckpointError if a file is missing, or not what was written.

        Of the memories only the sizes are compared; each is verified when it is read.
        """
        state = self.snapshot()
        self.history()
        sizes = self.storage.sizes("memories") if self.manifest.memories else {}
        if self.manifest.memories and not sizes:
            raise CheckpointError(
                f"the checkpoint of round {self.round} in {self.storage} has no memories of clients any more "
                f"({len(self.manifest.memories)} clients had one), as `rayfl clean` leaves a finished run: "
                "nothing can go on from it; start anew without --resume"
            )
        for name in self.manifest.memories.values():
            expected = self.manifest.files[name].bytes
            if sizes.get(name) != expected:
                raise self._damaged(name, f"it has {sizes.get(name, 0)} of {expected} bytes")
        return state

    def make_newest(self) -> None:
        """Delete the later checkpoints of the same run, which then resumes from this one."""
        for name in manifests(self.storage):
            if name > manifest_name(self.round):
                self.storage.delete(name)

    def check_config(self, config_hash: str, config: Mapping[str, Any]) -> None:
        """Raise CheckpointError, with the keys that differ, if the flat config is another one."""
        differences = differences_of(self.manifest.config, config)
        if differences or self.manifest.config_hash != config_hash:
            raise CheckpointError(
                f"the checkpoint of round {self.round} in {self.storage} belongs to another config: "
                f"{'; '.join(differences) or 'its hash differs'}; give that config, or start anew without "
                "--resume"
            )

    def check_provenance(self, provenance: Provenance) -> None:
        """Raise CheckpointError, which says what differs, if it was made with other data or code."""
        if difference := self.manifest.provenance.difference(provenance):
            raise CheckpointError(
                f"the checkpoint of round {self.round} in {self.storage} was made with {difference}; bring "
                "back what it was made with, or start anew without --resume"
            )

    def _arrays(self, name: str) -> Arrays:
        content = self._read(name)
        try:
            return load(content)
        except SafetensorError as error:
            raise self._damaged(name, first_line(error)) from error

    def _read(self, name: str) -> bytes:
        try:
            content = self.storage.read(name)
            check_content(self.manifest.files[name], content)
        except OSError as error:
            raise self._damaged(name, first_line(error)) from error
        return content

    def _damaged(self, name: str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint of round {self.round} in {self.storage}: {name} is damaged ({reason}); give the "
            "path of another checkpoint-*.json, or start anew without --resume"
        )


def differences_of(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Describe each key whose value is another one in two flat configs."""
    return [
        f"{key} = {json.dumps(there.get(key))} there, {json.dumps(here.get(key))} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


@contextlib.contextmanager
def before_the_run() -> Iterator[None]:
    """Raise what is wrong with checkpoints as bad input: no actor has started yet."""
    try:
        yield
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def saved_in(storage: Storage) -> list[SavedCheckpoint]:
    """Return the checkpoints in a run's folder, the oldest first.

    Raises CheckpointError if the newest cannot be read. Older unreadable ones are left out, since the newest
    supersedes them.
    """
    found = []
    for name in manifests(storage)[:-1]:
        with contextlib.suppress(CheckpointError):
            found.append(open_saved(storage, name))
    newest = newest_in(storage)
    return [*found, newest] if newest else []


def newest_in(storage: Storage) -> SavedCheckpoint | None:
    """Return the newest checkpoint in a run's folder, if any; CheckpointError if it is unreadable."""
    names = manifests(storage)
    return open_saved(storage, names[-1]) if names else None


def open_saved(storage: Storage, name: str) -> SavedCheckpoint:
    """Open the checkpoint of the manifest `name`. Raises CheckpointError if this version cannot read it."""
    path = below(storage.location, name)
    try:
        content = json.loads(storage.read(name))
        version = content["format"]
        if version == FORMAT:
            return SavedCheckpoint(storage, Manifest.model_validate_json(json.dumps(content)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = first_line(error)
        if isinstance(error, ValidationError):
            found = error.errors()[0]
            why = ": ".join(filter(None, [".".join(map(str, found["loc"])), found["msg"]]))
        others = [other for other in manifests(storage) if other != name]
        advice = f"; there is also {', '.join(others)}" if others else ""
        raise CheckpointError(
            f"{path} is no checkpoint of rayfl ({why}); name another checkpoint-*.json, a folder that holds "
            f"one, or start anew without --resume{advice}"
        ) from error
    raise CheckpointError(
        f"{path} has format {version}, this version of rayfl reads format {FORMAT}; go on with "
        "the version of rayfl that wrote it, or start anew without --resume"
    )


def open_named(path: str) -> SavedCheckpoint | None:
    """Open the checkpoint whose manifest has this path or URI; None if it is that of no manifest.

    Raises CheckpointError as `open_saved`.
    """
    path, options = split(path)
    if not path.endswith(".json"):
        return None
    parent, _, name = path.rpartition("/")
    return open_saved(Storage((parent or ".") + options), name)


def find(
    directory: str,
    config_hash: str,
    which: str,
    leads: Callable[[Manifest], bool] = lambda manifest: False,
) -> SavedCheckpoint:
    """Find the checkpoint to resume from. Raises CheckpointError if there is none.

    `which`: `latest` (the newest of any run with this config hash; else, of those of another config that
    `leads` to this one, that of the last round), the path or URI of a run's folder or of one
    checkpoint-*.json, or the id of an MLflow run.
    """
    if which == "latest":
        return _latest(directory, config_hash, leads)
    if (saved := named(which, directory)) is not None:
        return saved
    raise CheckpointError(
        f"--resume {which!r}: no checkpoint there, and none of an MLflow run of that id in {directory}; give "
        "'latest', a folder with checkpoint-*.json, one such file, or the id of a run"
    )


def named(which: str, directory: str) -> SavedCheckpoint | None:
    """Open the checkpoint of a path or URI, or the newest of a run's folder, or of its id in `directory`.

    None: there is none. Raises CheckpointError as `open_saved`.
    """
    if (saved := open_named(which)) is not None:
        return saved
    places = [which, *(below(directory, run, which) for run in Storage(directory).folders())]
    newest = (newest_in(Storage(place)) for place in places)
    return next((saved for saved in newest if saved is not None), None)


def _latest(directory: str, config_hash: str, leads: Callable[[Manifest], bool]) -> SavedCheckpoint:
    runs = Storage(below(directory, config_hash)).folders()
    newest = [newest_in(Storage(below(directory, config_hash, run))) for run in runs]
    if found := [saved for saved in newest if saved is not None]:
        return max(found, key=lambda saved: saved.manifest.written)
    others = Storage(directory).folders()
    if leading := [s for other in others for s in _readable(directory, other) if leads(s.manifest)]:
        return max(leading, key=lambda saved: (saved.round, saved.manifest.written))
    raise CheckpointError(
        f"--resume latest: no checkpoint of this config (hash {config_hash}) in {directory}, nor of one "
        "that differs in a smaller federation.rounds alone; configs with checkpoints there: "
        f"{', '.join(others) or 'none'}"
    )


def _readable(directory: str, config_hash: str) -> Iterator[SavedCheckpoint]:
    """Yield the newest checkpoint of each run of a config, but for those that cannot be read."""
    for run in Storage(below(directory, config_hash)).folders():
        with contextlib.suppress(CheckpointError):
            if saved := newest_in(Storage(below(directory, config_hash, run))):
                yield saved


def _round_of(name: str) -> int:
    return int(name.removesuffix(".safetensors").rpartition("-")[2])
