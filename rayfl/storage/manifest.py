"""Manifest of a checkpoint: the checkpoint-*.json that lists its files with their SHA-256."""

import hashlib
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayfl.provenance import Provenance
from rayfl.storage.storage import Storage

FORMAT = 4

# Only files of the run's own folder: the deletion of old checkpoints must not reach any other file.
FileName = Annotated[str, Field(pattern=r"^(state|history)-\d+\.(safetensors|json)$")]
MemoryName = Annotated[str, Field(pattern=r"^memories/\d+-\d+\.safetensors$")]


class WrittenFile(BaseModel):
    """Size and SHA-256 of a file when it was written."""

    model_config = ConfigDict(frozen=True, strict=True)
    bytes: int
    sha256: str


def written_file(content: bytes) -> WrittenFile:
    return WrittenFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def check_content(file: WrittenFile, content: bytes) -> None:
    """Raise OSError if this is not what was written."""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise OSError("its SHA-256 is not the one that was written down")


class Manifest(BaseModel):
    """Content of a checkpoint-*.json."""

    model_config = ConfigDict(frozen=True, strict=True)
    format: int
    round: int
    config_hash: str
    run_id: str | None
    """Id of the MLflow run."""
    written: float
    """Time in seconds since 1970."""
    state: FileName
    history: FileName
    memories: dict[int, MemoryName]
    """File of each client's memory, by client id."""
    config: dict[str, Any]
    provenance: Provenance
    files: dict[FileName | MemoryName, WrittenFile]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if missing := {self.state, self.history, *self.memories.values()} - self.files.keys():
            raise ValueError(f"files lacks {min(missing)}")
        return self


def manifest_name(round: int) -> str:
    return f"checkpoint-{round:08d}.json"


def manifests(storage: Storage) -> list[str]:
    """Return the names of the manifests in a run's folder, the oldest first."""
    names = storage.sizes()
    return sorted(n for n in names if n.startswith("checkpoint-") and n.endswith(".json"))
