"""Provenance of a result: digests of its data, and of the user's own code that its config names.

A config says where data and code are; what they hold may change. Runs and checkpoints record both digests.
"""

import ast
import functools
import hashlib
import importlib.machinery
import json
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DATA_TAG, CODE_TAG = "rayfl.data_digest", "rayfl.code_digest"
"""Tags of an MLflow run."""
ANSWERED_TAG = "rayfl.answered"
"""Tag of a run with which a sweep has answered, though a later run had other code or data: milliseconds since
1970. The code or the data are again what they were."""

_DIGITS = 16  # hexadecimal, as those of a config's hash


class Provenance(NamedTuple):
    """All that a result depends on beside its config."""

    data: str
    """Digest of the data as the source gives them."""
    code: dict[str, str]
    """Digest of each of the user's own modules, by its name; empty: only rayfl's methods are used."""

    @property
    def code_digest(self) -> str:
        return _digest(json.dumps(self.code, sort_keys=True).encode())

    @property
    def tags(self) -> dict[str, str]:
        return {DATA_TAG: self.data, CODE_TAG: self.code_digest}

    def difference(self, other: "Provenance") -> str:
        """Describe what the other one has differently; empty: nothing."""
        found = []
        if self.data != other.data:
            found.append(f"other data (digest {self.data}, here {other.data})")
        modules = sorted(self.code.keys() | other.code.keys())
        changed = [name for name in modules if self.code.get(name) != other.code.get(name)]
        if changed:
            found.append(f"other code ({', '.join(changed)})")
        return " and ".join(found)


def trial_folder(sweep: str, tags: Mapping[str, str]) -> str:
    """Return the name of the folder of a trial's checkpoints; with other data or code it is another one.

    `tags`: those of its provenance, which its MLflow run has too.
    """
    return f"{sweep}-{tags.get(DATA_TAG, '')[:6]}{tags.get(CODE_TAG, '')[:6]}"


def data_digest(arrays: Iterable[Any], words: Iterable[str]) -> str:
    """Return the digest of C-contiguous numpy arrays (None: there is none) and of names."""
    found = hashlib.sha256()
    for array in arrays:
        header = None if array is None else [array.dtype.str, array.shape]
        found.update(json.dumps(header).encode())
        if array is not None and array.size:
            found.update(memoryview(array).cast("B"))
    found.update(json.dumps([*words]).encode())
    return found.hexdigest()[:_DIGITS]


def code_of(names: Iterable[str]) -> dict[str, str]:
    """Return the digest of each local module that these modules are or import, by module name.

    Local is what is neither installed, nor of Python, nor of rayfl. Comments, layout and docstrings do not
    count.
    """
    found: dict[str, str] = {}
    waiting = [*names]
    while waiting:
        name = waiting.pop()
        file = _local_file(name)
        if name not in found and file is not None:
            found[name], imported = _read(file, name)
            waiting += imported
    return found


@functools.cache  # what this process has imported stays as it was then
def _read(file: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of a module's source, and the names of the modules that it may import."""
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except SyntaxError:
        return _digest(content), ()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    imported = tuple(_imported(tree, package))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            body[0].value.value = ""
    return _digest(ast.dump(tree).encode()), imported


def _is_text(statement: ast.AST) -> bool:
    """Return True for a string that stands alone: a docstring."""
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(getattr(value, "value", None), str)


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the names of all modules that an import anywhere in the file may mean, with their packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))


def _local_file(name: str) -> Path | None:
    """Return the source of a module of the user's own; None if it is another's, or no module."""
    module = sys.modules.get(name)
    found = getattr(module, "__file__", None) if module else _unloaded(name)
    return _unless_installed(found) if found is not None and found.endswith(".py") else None


@functools.cache  # a sweep asks for each of its trials
def _unless_installed(path: str) -> Path | None:
    file = Path(path).resolve()
    return None if any(file.is_relative_to(place) for place in _installed()) else file


def _unloaded(name: str) -> str | None:
    """Find the file of a module that is not imported, without importing its packages."""
    parent, _, _ = name.rpartition(".")
    path = None
    if parent:
        file = _local_file(parent)
        if file is None or file.name != "__init__.py":
            return None
        path = [str(file.parent)]
    elif name in sys.stdlib_module_names:
        return None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    return spec.origin if spec is not None and spec.has_location else None


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Return the directories of Python, of installed packages and of rayfl."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [sysconfig.get_path(kind) for kind in kinds]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    return (*(Path(place).resolve() for place in places), Path(__file__).resolve().parent)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
