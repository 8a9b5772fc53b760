"""Directories of data files: which files are read, and what is left out."""

import os
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rayfl.data.images import Encoded, decode, suffixes
from rayfl.errors import ConfigError, Refuse, reason
from rayfl.text import absolute, printable

# Systems and editors leave these in folders of files, beside names that start with a dot.
_HIDDEN = {"@eaDir", "__MACOSX", "__pycache__"}


def name_of(directory: Path) -> str:
    """The directory's own name, also of '.' and '..'."""
    return os.path.basename(os.path.abspath(directory)) or "data"


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN


class Tree:
    """A directory of data files. What is asked for is read; what else is there, it keeps the names of."""

    def __init__(self, root: Path, refuse: Refuse):
        """Keep the directory; `refuse` makes the errors about the option that named it."""
        self.root, self.refuse = root, refuse
        self._left_out: set[tuple[bool, str]] = set()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of what was not read, hidden ones last."""
        return tuple(name for _, name in sorted(self._left_out))

    def folders(self, directory: Path) -> list[Path]:
        """The folders in it, sorted; files are left out."""
        folders, files = self._split(directory)
        self.leave_out(files)
        return folders

    def images(self, directory: Path) -> list[Path]:
        """The image files in it at any depth, sorted; other files are left out."""
        return self.files(directory, suffixes())

    def files(self, directory: Path, suffixes: Collection[str]) -> list[Path]:
        """The files in it with these suffixes in any case, at any depth, sorted; others are left out."""
        found: list[Path] = []
        # Each folder is read once, whatever links there are to it, and none above the first.
        inside = [folder for folder in directory.parents if folder.is_relative_to(self.root)]
        above = {*inside, *self.root.resolve().parents, *directory.resolve().parents}
        seen, waiting = {_identity(folder) for folder in above}, [directory]
        while waiting:
            folder = waiting.pop()
            if (identity := _identity(folder)) in seen:
                self.leave_out([folder])
                continue
            seen.add(identity)
            folders, files = self._split(folder)
            waiting += reversed(folders)
            readable = [f for f in files if f.suffix.lower() in suffixes and _may_be_file(f)]
            found += readable
            self.leave_out(set(files) - set(readable))
        return sorted(found)

    def pixels(self, files: Sequence[Path], size: int | None = None) -> np.ndarray:
        """uint8 [n, H, W, C] of these image files; frames after the first are left out."""
        images = [Encoded(self.name(file), file) for file in files]
        pixels, animated = decode(lambda: images, self.refuse, size)
        self._left_out |= {(False, f"{where} (all but its first frame)") for where in animated}
        return pixels

    def leave_out(self, entries: Iterable[Path]) -> None:
        """Keep their names."""
        for entry in entries:
            name = self.name(entry) + ("/" if os.path.isdir(entry) else "")
            self._left_out.add((is_hidden(entry.name), name))

    def name(self, entry: Path) -> str:
        """Return its name for messages: from the root of the tree."""
        inside = entry.is_relative_to(self.root)
        return printable(str(entry.relative_to(self.root) if inside else entry))

    def entries(self, directory: Path) -> list[Path]:
        """All that is in it, sorted."""
        try:
            return [directory / name for name in sorted(os.listdir(directory))]
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            where = printable(str(directory))
            raise self.refuse(f"cannot list {where} ({reason(error)})") from error

    def _split(self, directory: Path) -> tuple[list[Path], list[Path]]:
        """Folders and files, sorted; hidden ones are left out."""
        folders: list[Path] = []
        files: list[Path] = []
        for entry in self.entries(directory):
            if is_hidden(entry.name):
                self.leave_out([entry])
            else:
                (folders if os.path.isdir(entry) else files).append(entry)
        return folders, files


def tree_at(path: str, layout: str) -> Tree:
    """The tree of the directory that `data.path` names; ConfigError if it is none."""
    root, refuse = absolute(path), partial(ConfigError, key="data.path", value=path)
    if not os.path.isdir(root):  # Path's raises for a name that is too long
        raise refuse(f"{printable(str(root))} is not a directory; expected one with {layout}")
    return Tree(root, refuse)


def _identity(directory: Path) -> tuple[int, int]:
    """Equal for all the names that links give to a directory."""
    found = os.stat(directory)
    return found.st_dev, found.st_ino


def _may_be_file(file: Path) -> bool:
    """Not a pipe or the like; a link that leads nowhere is kept, for to leave it out would hide a loss."""
    return os.path.isfile(file) or not os.path.exists(file)
