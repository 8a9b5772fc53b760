"""Checkpoints: the whole state of a run in storage, so that going on equals never having stopped.

A run has one folder, `<dir>/<config hash>/<run>`, in a local directory or at any URI that pyarrow or
fsspec knows (s3://bucket/path). In it:

    checkpoint-00000120.json              what belongs to the state after round 120, with every file's SHA-256
    state-00000120.safetensors            w, buffers and the server state
    history-00000120.json                 the metrics of all rounds so far
    memories/17-00000118.safetensors      memory of client 17, which was last in a cohort in round 118

The .json is written last, and files never change once they are named by one: a process that dies while it
writes leaves the checkpoint before it whole. A client's memory is written once, however many checkpoints
hold it. Nothing that is read is ever unpickled or imported.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rayfl.errors import CheckpointError, first_line
from rayfl.storage.storage import Storage, below, split

FORMAT = 1
AUTO_SECONDS = 30.0
Arrays = dict[str, np.ndarray]


class Memory(NamedTuple):
    """One client's memory."""

    round: int
    """The client's last round."""
    fetch: Callable[[], Arrays]


@dataclass(frozen=True)
class Snapshot:
    """A server after `round` rounds."""

    round: int
    tensors: Arrays
    """`w`, `buffers` and `server/<name>`."""
    memories: dict[int, Memory]
    """By client id."""


# Inside the run's folder: a manifest must name no file elsewhere, which tidying up would delete.
FileName = Annotated[str, Field(pattern=r"^(state|history)-\d+\.(safetensors|json)$")]
MemoryName = Annotated[str, Field(pattern=r"^memories/\d+-\d+\.safetensors$")]


class WrittenFile(BaseModel):
    """A file, as it was written."""

    model_config = ConfigDict(frozen=True, strict=True)
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a checkpoint-*.json says."""

    model_config = ConfigDict(frozen=True, strict=True)
    format: int
    round: int
    config_hash: str
    run_id: str | None
    """MLflow run that it belongs to."""
    written: float
    """Seconds since 1970."""
    state: FileName
    history: FileName
    memories: dict[int, MemoryName]
    """By client id."""
    config: dict[str, Any]
    files: dict[FileName | MemoryName, WrittenFile]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if missing := {self.state, self.history, *self.memories.values()} - self.files.keys():
            raise ValueError(f"files lacks {min(missing)}")
        return self


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint as it was found; its files are read, and proven whole, when they are asked for."""

    folder: Storage
    manifest: Manifest

    @property
    def round(self) -> int:
        return self.manifest.round

    @property
    def run_id(self) -> str | None:
        """MLflow run that it belongs to."""
        return self.manifest.run_id

    def snapshot(self) -> Snapshot:
        """The state. Raises CheckpointError if a file is missing or damaged."""
        memories = {
            client: Memory(_round_of(name), lambda name=name: self._arrays(name))
            for client, name in self.manifest.memories.items()
        }
        return Snapshot(self.round, self._arrays(self.manifest.state), memories)

    def history(self) -> dict[int, dict[str, float]]:
        """Metrics by round. Raises CheckpointError as `snapshot`."""
        rows = json.loads(self._read(self.manifest.history))
        return {int(round): metrics for round, metrics in rows.items()}

    def check(self) -> None:
        """CheckpointError if the state or the history is damaged, or a memory is missing or cut off."""
        self.snapshot()
        self.history()
        sizes = self.folder.sizes("memories") if self.manifest.memories else {}
        for name in self.manifest.memories.values():
            expected = self.manifest.files[name].bytes
            if sizes.get(name) != expected:
                raise self._damaged(name, f"it has {sizes.get(name, 0)} of {expected} bytes")

    def make_newest(self) -> None:
        """Delete the later checkpoints of its run, which is to go on from this one."""
        own = _manifest_name(self.round)
        for name in _manifests(self.folder):
            if name > own:
                self.folder.delete(name)

    def check_config(self, config_hash: str, config: Mapping[str, Any]) -> None:
        """CheckpointError, which says what differs, if it belongs to another config than this flat one."""
        own = self.manifest.config
        differences = [
            f"{key} = {json.dumps(own.get(key))} there, {json.dumps(config.get(key))} here"
            for key in sorted(own.keys() | config.keys())
            if own.get(key) != config.get(key)
        ]
        if differences or self.manifest.config_hash != config_hash:
            raise CheckpointError(
                f"the checkpoint of round {self.round} in {self.folder} belongs to another config: "
                f"{'; '.join(differences) or 'its hash differs'}; give that config, or start anew without "
                "--resume"
            )

    def _arrays(self, name: str) -> Arrays:
        content = self._read(name)
        try:
            return load(content)
        except SafetensorError as error:
            raise self._damaged(name, first_line(error)) from error

    def _read(self, name: str) -> bytes:
        try:
            content = self.folder.read(name)
        except OSError as error:
            raise self._damaged(name, first_line(error)) from error
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name].sha256:
            raise self._damaged(name, "its SHA-256 is not the one that was written down")
        return content

    def _damaged(self, name: str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint of round {self.round} in {self.folder}: {name} is damaged ({reason}); give the path "
            "of another checkpoint-*.json, or start anew without --resume"
        )


@dataclass
class CheckpointWriter:
    """Writes the checkpoints of one run, and tidies up."""

    location: str
    """`<dir>/<config hash>/<run>`."""
    config_hash: str
    config: dict[str, Any]
    """Flat: what a refusal compares."""
    run_id: str | None
    every: int | None
    """Rounds; None: `AUTO_SECONDS` apart."""
    keep_last: int
    _kept: list[SavedCheckpoint] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

    def prepare(self) -> None:
        """Make the folder, and try to write there. Raises CheckpointError if that cannot be."""
        folder = Storage(self.location)
        try:
            folder.make("memories")
            folder.write("trial", b"")
            folder.delete("trial")
        except (OSError, NotImplementedError) as error:
            raise CheckpointError(
                f"checkpoint.dir: {self.location} cannot be made, or written to ({first_line(error)}); "
                "give a directory or a URI that can be written to (for a URI, check its credentials), "
                "or set checkpoint.every=null"
            ) from error

    def due(self, round: int) -> bool:
        """Whether a checkpoint should be written after this round."""
        if self.every is not None:
            return round % self.every == 0
        return time.monotonic() - self._written >= AUTO_SECONDS

    @property
    def round(self) -> int:
        """Round of the newest checkpoint that was written or read here, or 0."""
        return self._kept[-1].round if self._kept else 0

    def latest(self) -> SavedCheckpoint | None:
        """The newest checkpoint of this run, None if there is none yet."""
        found = saved_in(Storage(self.location))
        self._kept = found
        return found[-1] if found else None

    def save(self, snapshot: Snapshot, history: Mapping[int, Mapping[str, float]]) -> None:
        """Write a checkpoint, then delete what only older ones than the last `keep_last` hold.

        Raises CheckpointError if the storage refuses.
        """
        folder = Storage(self.location)
        try:
            self._save(folder, snapshot, history)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint.dir: the checkpoint of round {snapshot.round} cannot be written to "
                f"{self.location} ({first_line(error)}); the checkpoint before it is whole: go on with "
                "--resume latest when there is room"
            ) from error
        self._written = time.monotonic()

    def _save(
        self, folder: Storage, snapshot: Snapshot, history: Mapping[int, Mapping[str, float]]
    ) -> None:
        known = self._kept[-1].manifest.files if self._kept else {}
        files: dict[str, WrittenFile] = {}

        def write(name: str, content: bytes) -> str:
            folder.write(name, content)
            files[name] = WrittenFile(
                bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
            )
            return name

        names = {
            client: f"memories/{client}-{memory.round:08d}.safetensors"
            for client, memory in sorted(snapshot.memories.items())
        }
        for client, name in names.items():
            if name in known:
                files[name] = known[name]
            else:
                write(name, save(_contiguous(snapshot.memories[client].fetch())))
        stem = f"{snapshot.round:08d}"
        manifest = Manifest(
            format=FORMAT,
            round=snapshot.round,
            config_hash=self.config_hash,
            run_id=self.run_id,
            written=time.time(),
            state=write(f"state-{stem}.safetensors", save(_contiguous(snapshot.tensors))),
            history=write(f"history-{stem}.json", json.dumps(history).encode()),
            memories=names,
            config=self.config,
            files=files,
        )
        folder.write(_manifest_name(snapshot.round), manifest.model_dump_json().encode())
        self._kept = [s for s in self._kept if s.round != snapshot.round]
        self._kept.append(SavedCheckpoint(folder, manifest))
        self._tidy(folder)

    def _tidy(self, folder: Storage) -> None:
        old, self._kept = self._kept[: -self.keep_last], self._kept[-self.keep_last :]
        needed = {name for saved in self._kept for name in saved.manifest.files}
        for saved in old:
            folder.delete(_manifest_name(saved.round))
            for name in saved.manifest.files.keys() - needed:
                folder.delete(name)


def saved_in(folder: Storage) -> list[SavedCheckpoint]:
    """The checkpoints in a run's folder, the oldest first. CheckpointError if the newest cannot be read.

    Older ones that cannot are left out: nothing is lost with them.
    """
    found = []
    for name in _manifests(folder)[:-1]:
        with contextlib.suppress(CheckpointError):
            found.append(open_saved(folder, name))
    newest = newest_in(folder)
    return [*found, newest] if newest else []


def newest_in(folder: Storage) -> SavedCheckpoint | None:
    """The newest checkpoint in a run's folder, None without any. CheckpointError if it cannot be read."""
    names = _manifests(folder)
    return open_saved(folder, names[-1]) if names else None


def open_saved(folder: Storage, name: str) -> SavedCheckpoint:
    """The checkpoint that the file `name` describes. CheckpointError if it is none of this version."""
    path = below(folder.location, name)
    try:
        content = json.loads(folder.read(name))
        version = content["format"]
        if version == FORMAT:
            return SavedCheckpoint(folder, Manifest.model_validate_json(json.dumps(content)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = first_line(error)
        if isinstance(error, ValidationError):
            found = error.errors()[0]
            why = ": ".join(filter(None, [".".join(map(str, found["loc"])), found["msg"]]))
        others = [other for other in _manifests(folder) if other != name]
        advice = f"; there is also {', '.join(others)}" if others else ""
        raise CheckpointError(
            f"{path} is no checkpoint of rayfl ({why}); name another checkpoint-*.json, a folder that holds "
            f"one, or start anew without --resume{advice}"
        ) from error
    raise CheckpointError(
        f"{path} has format {version}, this version of rayfl reads format {FORMAT}; go on with "
        "the version of rayfl that wrote it, or start anew without --resume"
    )


def find(directory: str, config_hash: str, which: str) -> SavedCheckpoint:
    """The checkpoint to go on from. Raises CheckpointError if there is none.

    `which`: `latest` (the newest of any run with this config hash), the path or URI of a run's folder or
    of one checkpoint-*.json, or the id of an MLflow run.
    """
    if which == "latest":
        runs = Storage(below(directory, config_hash)).folders()
        newest = [newest_in(Storage(below(directory, config_hash, run))) for run in runs]
        found = [saved for saved in newest if saved is not None]
        if not found:
            raise CheckpointError(
                f"--resume latest: no checkpoint of this config (hash {config_hash}) in {directory}; "
                f"configs with checkpoints there: {', '.join(Storage(directory).folders()) or 'none'}"
            )
        return max(found, key=lambda saved: saved.manifest.written)
    path, options = split(which)
    if path.endswith(".json"):
        parent, _, name = path.rpartition("/")
        return open_saved(Storage((parent or ".") + options), name)
    places = [which, *(below(directory, run, which) for run in Storage(directory).folders())]
    for place in places:
        if found := newest_in(Storage(place)):
            return found
    raise CheckpointError(
        f"--resume {which!r}: no checkpoint there, and none of an MLflow run of that id in {directory}; give "
        "'latest', a folder with checkpoint-*.json, one such file, or the id of a run"
    )


def _contiguous(arrays: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _manifest_name(round: int) -> str:
    return f"checkpoint-{round:08d}.json"


def _manifests(folder: Storage) -> list[str]:
    """The files that describe checkpoints, the oldest first."""
    names = (n for n in folder.sizes() if n.startswith("checkpoint-") and n.endswith(".json"))
    return sorted(names)


def _round_of(name: str) -> int:
    return int(name.removesuffix(".safetensors").rpartition("-")[2])
