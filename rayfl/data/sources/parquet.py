"""Images in Parquet files.

A column may be larger than the 2 GB that a chunk of Arrow's holds: images are read some rows at a time.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Source, from_arrays
from rayfl.data.images import Encoded, decode
from rayfl.data.sources.splits import files_of, others
from rayfl.data.trees import name_of, tree_at
from rayfl.errors import ConfigError, Refuse, reason
from rayfl.text import printable, shown

if TYPE_CHECKING:  # pyarrow is slow to import: only the functions that use it do so
    import pyarrow

_ROWS = 400  # read at once
# True for the types of columns that an option may name.
_Fits = Callable[["pyarrow.DataType"], bool]


class _File:
    """An open Parquet file. What is wrong with it is a ConfigError that names it."""

    def __init__(self, path: Path, refuse: Refuse):
        import pyarrow.parquet as pq

        self.path, self._refuse = path, refuse
        with self._reading():
            self._file = pq.ParquetFile(path)
            self.schema = self._file.schema_arrow

    def fitting(self, fits: _Fits) -> list[str]:
        """The columns of a fitting type; two of one name cannot be told apart."""
        names = self.schema.names
        return [f.name for f in self.schema if fits(f.type) and names.count(f.name) == 1]

    def column(self, name: str) -> "pyarrow.ChunkedArray":
        """A whole column, without empty cells."""
        with self._reading():
            column = self._file.read(columns=[name])[name]
        if column.null_count:
            row = next(i for i, cell in enumerate(column) if not cell.is_valid)
            raise self.error(f"has an empty cell in {name!r}, row {row}; fill or remove it")
        return column

    def labels(self, name: str) -> np.ndarray:
        column = self.column(name)
        with self._reading():
            return column.cast("int64").to_numpy()

    def images(self, name: str) -> Iterator[Encoded]:
        """The images of a column, row by row."""
        row = 0
        for cells in self._batches(name):
            for cell in cells.to_pylist():
                content = cell["bytes"] if isinstance(cell, dict) else cell
                if content is None:
                    raise self.error(_no_image(cell, name, row))
                yield Encoded(f"{self.path.name}, row {row}", content)
                row += 1

    def _batches(self, name: str) -> Iterator["pyarrow.Array"]:
        with self._reading():
            for batch in self._file.iter_batches(_ROWS, columns=[name]):
                yield batch.column(name)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self.error(f"cannot be read ({reason(error)})") from error

    def error(self, problem: str) -> ConfigError:
        return self._refuse(f"{printable(str(self.path))} {problem}")


@dataclass(frozen=True, kw_only=True)
class Parquet(Source):
    """JPEG or PNG images in Parquet files, as image data sets are published on Hugging Face."""

    path: Annotated[
        str,
        Field(
            description="directory with train.parquet or train-00000-of-00001.parquet and so on, or a "
            "folder train/ of such files; and the same for test"
        ),
    ]
    image_column: Annotated[
        str | None, Field(description="column of the images; found by its type if not given")
    ] = None
    label_column: Annotated[
        str | None, Field(description="column of the labels; found by its type if not given")
    ] = None
    group_column: Annotated[
        str | None, Field(description="column of the writers or domains, integers or text")
    ] = None

    def read(self) -> Dataset:
        tree = tree_at(self.path, "train*.parquet and test*.parquet files")
        splits = [files_of(tree, split) for split in ("train", "test")]
        train, test = ([_File(path, tree.refuse) for path in used] for used, _ in splits)
        image = self._column(train, "image_column", _is_image)
        label = self._column(train, "label_column", _is_integer)
        for file in [*train, *test]:
            _check_columns(file, {image: _is_image, label: _is_integer}, like=train[0])
        _check_class_names([*train, *test], label)
        groups = self._groups(train, test)
        left_out = [name for _, beside in splits for name in beside]
        samples = []
        for files in (train, test):
            pixels, animated = decode(partial(_images, files, image), tree.refuse)
            samples.append((pixels, np.concatenate([file.labels(label) for file in files])))
            left_out += [f"{where} (all but its first frame)" for where in animated]
        return from_arrays(
            name_of(tree.root),
            *samples,
            classes=_class_names(train[0].schema.metadata, label),
            groups=groups,
            files=len(train) + len(test),
            left_out=[*left_out, *others(tree, [file.path for file in (*train, *test)])],
        )

    def _column(self, files: Sequence[_File], option: str, fits: _Fits) -> str:
        """The column that the option names, or the only one of a fitting type."""
        given, fitting = getattr(self, option), files[0].fitting(fits)
        if option != "group_column":
            fitting = [name for name in fitting if name != self.group_column]
        wanted = fitting if given is None else [name for name in fitting if name == given]
        if len(wanted) != 1:
            raise ConfigError(
                "must be one of the columns of a fitting type, "
                f"{fitting}; all columns of {self.path!r} are {files[0].schema.names}",
                key=f"data.{option}",
                value=given,
            )
        return wanted[0]

    def _groups(
        self, train: Sequence[_File], test: Sequence[_File]
    ) -> tuple[np.ndarray, np.ndarray | None] | None:
        """The group of each train sample, and of each test sample if the test files say it."""
        if self.group_column is None:
            return None
        group = self._column(train, "group_column", _is_name)
        known = any(group in file.schema.names for file in test)
        files = [*train, *test] if known else train
        for file in files:
            _check_columns(file, {group: _is_name}, like=train[0])
        kinds = {str(file.schema.field(group).type) for file in files}
        if len(kinds) > 1:
            raise ConfigError(
                "must have one type in the train and test files of "
                f"{self.path!r}; the types are {sorted(kinds)}",
                key="data.group_column",
                value=group,
            )

        def names(files: Sequence[_File]) -> np.ndarray:
            return np.concatenate([file.column(group).to_numpy() for file in files])

        return names(train), names(test) if known else None


def _images(files: Sequence[_File], column: str) -> Iterator[Encoded]:
    return chain.from_iterable(file.images(column) for file in files)


def _check_columns(file: _File, wanted: dict[str, _Fits], like: _File) -> None:
    for name, fits in wanted.items():
        if name not in file.fitting(fits):
            raise file.error(
                f"has no column {name!r} as {like.path.name} has it; its columns are "
                f"{file.schema.names}"
            )


def _check_class_names(files: Sequence[_File], label: str) -> None:
    """A label means one class: the files that name the classes must agree."""
    named = [(f, names) for f in files if (names := _class_names(f.schema.metadata, label))]
    for file, names in named[1:]:
        first, expected = named[0]
        for k, (a, b) in enumerate(zip_longest(expected, names)):
            if a != b:
                raise file.error(
                    f"names label {k} of {label!r} {shown(b)}, but {printable(str(first.path))} names it "
                    f"{shown(a)}; write the files again with one list of class names"
                )


def _no_image(cell: dict[str, object] | None, name: str, row: int) -> str:
    path = (cell or {}).get("path")
    if path is None:
        return f"has an empty cell in {name!r}, row {row}; fill or remove it"
    return (
        f"has the path {shown(path)} without an image in {name!r}, row {row}; write the file again with "
        "the images' bytes in it"
    )


def _is_image(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        kinds = [field.type for field in fields if field.name == "bytes"]
        return len(kinds) == 1 and _is_image(kinds[0]) and not pa.types.is_struct(kinds[0])
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_integer(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind)


def _is_name(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The class names that Hugging Face's `datasets` writes into the schema, if it did."""
    try:
        described = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names or None
