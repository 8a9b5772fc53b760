"""Storage for checkpoints: a local directory, or any URI that pyarrow or fsspec supports.

Options of a URI are at its end: `s3://bucket/path?region=eu-central-1`.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

from rayfl.errors import CheckpointError, first_line

GOOGLE_RETRY_SECONDS = 60


class Storage:
    """Directory of a local or remote file system."""

    def __init__(self, location: str):
        """Open the location. Raises CheckpointError if its URI scheme is unknown."""
        self.location = location
        self._system, self._root = _file_system(location)
        self._is_local = self._system.type_name == "local"

    def __str__(self) -> str:
        return self.location

    def read(self, name: str) -> bytes:
        with self._system.open_input_stream(f"{self._root}/{name}") as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        path = f"{self._root}/{name}"
        # Object stores show only complete objects; in a local directory the rename has this effect.
        part = f"{path}.part" if self._is_local else path
        with self._system.open_output_stream(part) as stream:
            stream.write(content)
        if self._is_local:
            self._system.move(part, path)

    def make(self, name: str = "") -> None:
        self._system.create_dir(f"{self._root}/{name}".rstrip("/"), recursive=True)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # deleted by another process
            self._system.delete_file(f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        """Delete a subfolder with its content, if it exists, and then this directory if it is empty."""
        with contextlib.suppress(FileNotFoundError):
            self._system.delete_dir(f"{self._root}/{name}")
        if self._is_local:  # an object store has no directories
            with contextlib.suppress(OSError):
                Path(self._root).rmdir()

    def sizes(self, name: str = "") -> dict[str, int]:
        """Return the size in bytes of each file in a subfolder, by its path relative to this directory."""
        return {path: info.size for path, info in self._list(name) if info.is_file}

    def folders(self) -> list[str]:
        return sorted(path for path, info in self._list("") if not info.is_file)

    def _list(self, name: str) -> list[tuple[str, Any]]:
        from pyarrow.fs import FileSelector

        place = f"{self._root}/{name}".rstrip("/")
        try:
            infos = self._system.get_file_info(FileSelector(place, allow_not_found=True))
        except OSError as error:
            raise CheckpointError(
                f"{self} cannot be read ({first_line(error)}); check who may, and the "
                "credentials if it is a URI",
                key="checkpoint.dir",
            ) from error
        return [(f"{name}/{info.base_name}".lstrip("/"), info) for info in infos]


def below(location: str, *names: str) -> str:
    """Return the location of a subfolder: `s3://b/a?region=r` and `x` give `s3://b/a/x?region=r`."""
    path, options = split(location)
    return "/".join([path, *names]) + options


def split(location: str) -> tuple[str, str]:
    """Split a URI into the part before its options and the options, from `?` on; a local path has none."""
    path, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return path, mark + options


def _file_system(location: str) -> tuple[Any, str]:
    from pyarrow import ArrowInvalid, fs  # slow to import

    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(os.path.expanduser(location)).absolute())
    if location.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in location:
        # The default of Google's client is 15 minutes, in which the command seems to hang.
        location += f"{'&' if '?' in location else '?'}retry_limit_seconds={GOOGLE_RETRY_SECONDS}"
    try:
        return fs.FileSystem.from_uri(location)
    except ArrowInvalid:
        pass  # a scheme that only fsspec supports
    except OSError as error:  # S3: from_uri asks the service for the bucket's region
        raise CheckpointError(
            f"checkpoint.dir (or --resume) = {location!r}: cannot be reached ({first_line(error)}); "
            "check the name, the network and the credentials",
            keys=("checkpoint.dir",),
        ) from error
    try:
        import fsspec

        fsspec.get_filesystem_class(
            location.partition("://")[0]
        )  # url_to_fs treats an unknown scheme as a local path
        system, root = fsspec.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint.dir (or --resume) = {location!r}: no such kind of storage ({first_line(error)}); "
            "give a directory or a URI such as s3://bucket/path",
            keys=("checkpoint.dir",),
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(system)), root
