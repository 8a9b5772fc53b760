"""Which Parquet files make a split.

As Hugging Face and others name them: train.parquet, train-00000-of-00002.parquet (older ones with a hash
at the end), train_0.parquet, or any names in a folder train/.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rayfl.data.trees import is_hidden
from rayfl.errors import ConfigError
from rayfl.wording import printable

_SUFFIX = ".parquet"
_PART = r"[-_. ]?\d+(?:[-_.]of[-_.](?P<total>\d+)(?:-[0-9a-f]+)?)?"


class Files(NamedTuple):
    """The files of a split, sorted, and what there is to say of others."""

    used: list[Path]
    left_out: list[str]


def files_of(directory: Path, split: str, given: str) -> Files:
    """The files of `train` or `test`. `given` is the option that named the directory, for ConfigError."""
    named = re.compile(rf"{split}(?:{_PART})?{re.escape(_SUFFIX)}")
    present = _parquet(directory, given)
    matches = {file: found for file in present if (found := named.fullmatch(file.name))}
    inside = _parquet(directory / split, given) if (directory / split).is_dir() else []
    shown = [file for file in inside if not is_hidden(file.name)]
    if matches and shown:
        raise ConfigError(
            f"{given}: {min(matches).name} and the folder {split}/ are both there; keep one of them"
        )
    if not matches and not shown:
        similar = [file.name for file in present if file.name.startswith(split)]
        raise ConfigError(
            f"{given}: {printable(str(directory))} has no {split} files; expected {split}{_SUFFIX}, "
            f"{split}-00000-of-00001{_SUFFIX} and so on, or {split}/*{_SUFFIX} in it"
            + (f"; for part of the split {split} do not pass: {similar[:3]}" if similar else "")
        )
    missing = _missing(list(matches.values()), split, given)
    hidden = [f"{split}/{file.name}" for file in inside if is_hidden(file.name)]
    used = [part for file in matches or shown for part in _parts(file, given)]
    return Files(used, [*missing, *hidden])


def others(directory: Path, used: Sequence[Path], given: str) -> list[str]:
    """The names of the Parquet files in a directory that are not used; hidden ones last."""
    known = {*used, *(file.parent for file in used)}
    names = [file.name for file in _parquet(directory, given) if file not in known]
    return sorted(names, key=lambda name: (is_hidden(name), name))


def _parquet(directory: Path, given: str) -> list[Path]:
    """What has the suffix of Parquet files, sorted: Spark writes folders of such names, too."""
    try:
        return sorted(directory / n for n in os.listdir(directory) if n.endswith(_SUFFIX))
    except OSError as error:
        raise ConfigError(
            f"{given}: cannot list {printable(str(directory))} ({error.strerror})"
        ) from error


def _parts(file: Path, given: str) -> list[Path]:
    if not file.is_dir():
        return [file]
    return [part for part in _parquet(file, given) if not is_hidden(part.name)]


def _missing(shards: list[re.Match[str]], split: str, given: str) -> list[str]:
    """What to say of shards that say how many they are, if not all are there."""
    totals = {found["total"] for found in shards}
    if totals <= {None}:
        return []
    if len(totals) > 1 or len(shards) > int(shards[0]["total"]):
        names = [found.string for found in shards]
        raise ConfigError(
            f"{given}: there is more than one version of the split {split}, such as {names[0]!r} and "
            f"{names[-1]!r}; keep one"
        )
    total = int(shards[0]["total"])
    if len(shards) == total:
        return []
    return [f"{total - len(shards)} of the {total} files of {split}, which are not there"]
