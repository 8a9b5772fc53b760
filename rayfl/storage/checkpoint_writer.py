"""Writer of the checkpoints of one run."""

import contextlib
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayfl.errors import CheckpointError, first_line
from rayfl.provenance import Provenance
from rayfl.storage.checkpoint import SavedCheckpoint, open_named, saved_in
from rayfl.storage.manifest import (
    FORMAT,
    Manifest,
    WrittenFile,
    manifest_name,
    manifests,
    written_file,
)
from rayfl.storage.memory_files import FOLDER, MemoryFiles, encoded, memory_name
from rayfl.storage.snapshot import Snapshot
from rayfl.storage.storage import Storage

AUTO_SECONDS = 30.0


@dataclass
class CheckpointWriter:
    """Write the checkpoints of one run, and delete old ones."""

    location: str
    """Folder `<dir>/<config hash>/<run>`."""
    config_hash: str
    config: dict[str, Any]
    """Flat config; a resume with another one is refused."""
    provenance: Provenance
    run_id: str | None
    every: int | None
    """Rounds between checkpoints; None: one every `AUTO_SECONDS`, or before old memories pile up."""
    keep_last: int | None
    """None: 2, or 1 if memories are in files, where a second one may double them."""
    keep_at_end: int = 1
    """The same once the run is done."""
    origin: str | None = None
    """Path of another run's checkpoint, from which this one goes on until it has its own."""
    _kept: list[SavedCheckpoint] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.memories = MemoryFiles(self.location)
        """Files of clients' memories, which the server may write before a checkpoint names them."""

    def prepare(self) -> None:
        """Create the folder and test that it is writable. Raises CheckpointError if it is not."""
        storage = Storage(self.location)
        try:
            storage.make(FOLDER)
            storage.write("trial", b"")
            storage.delete("trial")
        except (OSError, NotImplementedError) as error:
            raise CheckpointError(
                f"{self.location} cannot be made, or written to ({first_line(error)}); "
                "give a directory or a URI that can be written to (for a URI, check its credentials), "
                "or set checkpoint.every=null",
                key="checkpoint.dir",
                keys=("checkpoint.every",),
            ) from error

    def due(self, round: int) -> bool:
        """Return True if a checkpoint should be written after this round."""
        if self.every is not None:
            return round % self.every == 0
        return time.monotonic() - self._written >= AUTO_SECONDS or self.memories.piles_up

    @property
    def round(self) -> int:
        """Round of the newest checkpoint that this object wrote or read, or 0."""
        return self._kept[-1].round if self._kept else 0

    def latest(self) -> SavedCheckpoint | None:
        """Return the newest checkpoint of this run, or what it began from, if there is one."""
        self._know(saved_in(Storage(self.location)))
        if not self._kept and self.origin is not None:
            return open_named(self.origin)
        return self._kept[-1] if self._kept else None

    def reached(self, round: int) -> bool:
        """Return whether a checkpoint of this round or a later one is there, from whatever process."""
        names = manifests(Storage(self.location))
        return bool(names) and names[-1] >= manifest_name(round)

    def follow(self, saved: SavedCheckpoint) -> None:
        """Delete this run's checkpoints if it goes on from another one's.

        A client's memory of a round has the same name in both runs, and is not the same.
        """
        if self._kept and _state(self._kept[-1]) != _state(saved):
            for name in reversed(manifests(Storage(self.location))):
                Storage(self.location).delete(name)
            self._know([])

    def save(self, snapshot: Snapshot, history: Mapping[int, Mapping[str, float]]) -> None:
        """Write a checkpoint, then delete all but the last `keep_last` ones.

        Raises CheckpointError if the storage cannot be written.
        """
        storage = Storage(self.location)
        try:
            self._save(storage, snapshot, history)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of round {snapshot.round} cannot be written to "
                f"{self.location} ({first_line(error)}); the checkpoint before it is whole: go on with "
                "--resume latest when there is room",
                key="checkpoint.dir",
            ) from error
        self._written = time.monotonic()

    def _save(
        self, storage: Storage, snapshot: Snapshot, history: Mapping[int, Mapping[str, float]]
    ) -> None:
        files: dict[str, WrittenFile] = {}

        def write(name: str, content: bytes) -> str:
            storage.write(name, content)
            files[name] = written_file(content)
            return name

        names = {
            client: memory_name(client, memory.round)
            for client, memory in sorted(snapshot.memories.items())
        }
        for client, name in names.items():
            if name not in self.memories.written:
                self.memories.write(name, snapshot.memories[client].fetch())
            files[name] = self.memories.written[name]
        stem = f"{snapshot.round:08d}"
        manifest = Manifest(
            format=FORMAT,
            round=snapshot.round,
            config_hash=self.config_hash,
            run_id=self.run_id,
            written=time.time(),
            state=write(f"state-{stem}.safetensors", encoded(snapshot.tensors)),
            history=write(f"history-{stem}.json", _encoded_rows(history)),
            memories=names,
            config=self.config,
            provenance=self.provenance,
            files=files,
        )
        storage.write(manifest_name(snapshot.round), manifest.model_dump_json().encode())
        others = [saved for saved in self._kept if saved.round != snapshot.round]
        self._kept = [*others, SavedCheckpoint(storage, manifest)]
        self._delete_old(storage, self.keep_last or (1 if self.memories.holds_memories else 2))

    def conclude(self) -> None:
        """Delete the checkpoints that a run which is done need not keep."""
        with contextlib.suppress(OSError):  # that they are still there is no harm
            self._delete_old(Storage(self.location), self.keep_at_end)

    def _delete_old(self, storage: Storage, keep: int) -> None:
        old, self._kept = self._kept[:-keep], self._kept[-keep:]
        self.memories.need(_files_of(self._kept))
        for saved in old:
            storage.delete(manifest_name(saved.round))
            for name in saved.manifest.files.keys() - self.memories.needed:
                storage.delete(name)
                self.memories.written.pop(name, None)

    def _know(self, kept: list[SavedCheckpoint]) -> None:
        """Take these as the checkpoints that there are."""
        self._kept, self.memories.written = kept, _files_of(kept)
        self.memories.need(self.memories.written)


def _encoded_rows(rows: Mapping[int, Mapping[str, float]]) -> bytes:
    """Return the rows as JSON; row by row, for all at once take ten times the memory of the result."""
    out = io.BytesIO()
    for round, row in rows.items():
        out.write(b", " if out.tell() else b"{")
        out.write(f'"{round}": {json.dumps(dict(row))}'.encode())
    out.write(b"}" if out.tell() else b"{}")
    return out.getvalue()


def _files_of(checkpoints: list[SavedCheckpoint]) -> dict[str, WrittenFile]:
    return {n: file for saved in checkpoints for n, file in saved.manifest.files.items()}


def _state(saved: SavedCheckpoint) -> dict[str, WrittenFile]:
    """Return the files of a checkpoint but for the history, whose times differ from run to run."""
    files = saved.manifest.files
    return {name: file for name, file in files.items() if name != saved.manifest.history}
