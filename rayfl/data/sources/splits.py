"""The Parquet files that make a split.

Their names are those of Hugging Face and others: train.parquet, train-00000-of-00002.parquet (older ones with
a hash at the end), train_0.parquet, or any names in a folder train/, at any depth below it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from rayfl.data.trees import Tree, is_hidden
from rayfl.errors import Refuse
from rayfl.text import printable

_SUFFIX = ".parquet"
_PART = r"[-_. ]?\d+(?:[-_.]of[-_.](?P<total>\d+)(?:-[0-9a-f]+)?)?"


def files_of(whole: Tree, split: str) -> tuple[list[Path], list[str]]:
    """The files of `train` or `test`, sorted, and what there is to say of others."""
    directory, refuse = whole.root, whole.refuse
    tree = Tree(directory, refuse)  # with what this split alone leaves out
    named = re.compile(rf"{split}(?:{_PART})?(?i:{re.escape(_SUFFIX)})")
    present = _parquet(tree)
    matches = {file: found for file in present if (found := named.fullmatch(file.name))}
    inside = _inside(tree, directory / split) if (directory / split).is_dir() else []
    if matches and inside:
        raise refuse(
            f"{min(matches).name} and the folder {split}/ are both there; keep one of them"
        )
    if not matches and not inside:
        similar = [file.name for file in present if file.name.startswith(split)]
        raise refuse(
            f"{printable(str(directory))} has no {split} files; expected {split}{_SUFFIX}, "
            f"{split}-00000-of-00001{_SUFFIX} and so on, or {split}/*{_SUFFIX} in it"
            + (f"; for part of the split {split} do not pass: {similar[:3]}" if similar else "")
        )
    missing = _missing(list(matches.values()), split, refuse)
    used = inside or [part for file in matches for part in _parts(tree, file)]
    return used, [*missing, *tree.left_out]


def others(tree: Tree, used: Sequence[Path]) -> list[str]:
    """The names of the Parquet files in the directory that are not used; hidden ones last."""
    known = {*used, *(folder for file in used for folder in file.parents)}
    names = [file.name for file in _parquet(tree) if file not in known]
    return sorted(names, key=lambda name: (is_hidden(name), name))


def _parquet(tree: Tree) -> list[Path]:
    """List the paths with the suffix of Parquet files, sorted: Spark writes folders of such names, too."""
    return [path for path in tree.entries(tree.root) if path.name.lower().endswith(_SUFFIX)]


def _parts(tree: Tree, file: Path) -> list[Path]:
    """The file, or the files in the folder of such a name."""
    if not file.is_dir():
        return [file]
    parts = _inside(tree, file)
    if not parts:
        raise tree.refuse(
            f"the folder {tree.name(file)}/ has no {_SUFFIX} files in it; put some there, or "
            "remove it"
        )
    return parts


def _inside(tree: Tree, folder: Path) -> list[Path]:
    """The Parquet files in it at any depth. Hive's folders hold a column that the files then lack."""
    files = tree.files(folder, {_SUFFIX})
    for file in files:
        if any("=" in name for name in file.relative_to(folder).parts[:-1]):
            raise tree.refuse(
                f"{tree.name(file.parent)}/ is named as a partition, key=value, whose column "
                "is not in its files; write them with all their columns, in folders without '='"
            )
    return files


def _missing(shards: list[re.Match[str]], split: str, refuse: Refuse) -> list[str]:
    """Describe the shards that are missing, where their names say how many there are."""
    totals = {found["total"] for found in shards}
    if totals <= {None}:
        return []
    if len(totals) > 1 or len(shards) > int(shards[0]["total"]):
        names = [found.string for found in shards]
        raise refuse(
            f"there is more than one version of the split {split}, such as {names[0]!r} and "
            f"{names[-1]!r}; keep one"
        )
    total = int(shards[0]["total"])
    if len(shards) == total:
        return []
    return [f"{total - len(shards)} of the {total} files of {split}, which are not there"]
