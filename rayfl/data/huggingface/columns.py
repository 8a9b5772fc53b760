"""Columns of a Hugging Face data set as arrays, read in batches of Arrow's rows.

Shapes: n rows, H x W pixels, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rayfl.data.images import Encoded
from rayfl.errors import ConfigError, Refuse, reason

if TYPE_CHECKING:  # datasets and pyarrow are slow to import: only the functions that use them do so
    import pyarrow

Kind = Literal["image", "numbers", "text", "classes", "integers", "floats", "other"]
"""Kind of a column: numbers are lists or arrays of numbers of one shape; classes are named integers."""

_ROWS = 400  # read at once


@dataclass(frozen=True)
class Split:
    """A split of a data set. What is wrong with it is a ConfigError that names it."""

    name: str
    data: Any  # datasets.Dataset
    refuse: Refuse

    @property
    def columns(self) -> list[str]:
        return list(self.data.column_names)

    def kind(self, column: str) -> Kind:
        """The kind of a column."""
        from datasets import ClassLabel, Image

        feature = self.data.features[column]
        if isinstance(feature, Image):
            return "image"
        if isinstance(feature, ClassLabel):
            return "classes"
        return _kind(self.data.features.arrow_schema.field(column).type)

    def of_kind(self, *kinds: Kind) -> list[str]:
        """The columns of these kinds."""
        return [column for column in self.columns if self.kind(column) in kinds]

    def class_names(self, column: str) -> list[str]:
        """The names of a column of classes."""
        return list(self.data.features[column].names)

    def check_like(self, train: "Split", column: str) -> None:
        """ConfigError unless the column has the same kind, and the same classes, as in the train split."""
        found = self.kind(column) if column in self.columns else "no column"
        if found != (kind := train.kind(column)):
            raise self.error(
                f"has {column!r} as {found}, and {train.name!r} as {kind}; give both one type"
            )
        if kind == "classes" and self.class_names(column) != train.class_names(column):
            raise self.error(
                f"names the classes of {column!r} otherwise than {train.name!r}; save both with one list of "
                "class names"
            )

    def images(self, column: str) -> Iterator[Encoded]:
        """The images of a column, row by row."""
        row = 0
        for cells in self._batches(column):
            for cell in cells.to_pylist():
                content = cell.get("bytes") if isinstance(cell, dict) else cell
                if content is None:
                    content = Path(cell.get("path") or "")
                    if not content.is_file():
                        raise self.error(
                            f"has no image in {column!r}, row {row}; remove the row, or save the data "
                            "with the images' bytes in it"
                        )
                yield Encoded(f"split {self.name}, row {row}", content)
                row += 1

    def texts(self, column: str) -> Iterator[list[str]]:
        """The texts of a column, a list a batch of rows."""
        for cells in self._batches(column):
            yield cells.to_pylist()

    def names(self, column: str) -> np.ndarray:
        """The integers or texts of a column, `[n]`."""
        if self.kind(column) == "text":
            return np.array([text for texts in self.texts(column) for text in texts])
        return self.numbers(column).astype(np.int64)

    def numbers(self, column: str) -> np.ndarray:
        """The numbers of a column, `[n]` or with the shape of its arrays, `[n, ...]`."""
        batches: list[np.ndarray] = []
        for cells in self._batches(column):
            batch = self._array(cells, column)
            if batches and batch.shape[1:] != batches[0].shape[1:]:
                raise self._ragged(column)
            batches.append(batch)
        return np.concatenate(batches)

    def _array(self, cells: "pyarrow.Array", column: str) -> np.ndarray:
        import pyarrow as pa
        import pyarrow.compute as pc

        shape = [len(cells)]
        while True:
            if isinstance(cells, pa.ExtensionArray):
                cells = cells.storage
            if cells.null_count:
                raise self.error(f"has an empty cell in {column!r}; fill or remove it")
            if not _is_list(cells.type):
                return cells.to_numpy(zero_copy_only=False).reshape(shape)
            lengths = pc.call_function("list_value_length", [cells]).unique().to_pylist()
            if len(lengths) != 1:
                raise self._ragged(column)
            shape.append(lengths[0])
            cells = cells.flatten()

    def _batches(self, column: str) -> Iterator["pyarrow.Array"]:
        """A column's cells, some rows at a time; none is empty."""
        from datasets import Image

        data = self.data.select_columns([column])
        if isinstance(data.features[column], Image):
            data = data.cast_column(column, Image(decode=False))
        try:
            row = 0
            for table in data.with_format("arrow").iter(_ROWS):
                cells = table[column].combine_chunks()
                if cells.null_count:
                    row += cells.is_null().to_pylist().index(True)
                    raise self.error(
                        f"has an empty cell in {column!r}, row {row}; fill or remove it"
                    )
                row += len(cells)
                yield cells
        except ConfigError:
            raise
        except Exception as error:  # whatever a damaged file makes Arrow raise
            raise self.error(f"cannot be read ({reason(error)})") from error

    def _ragged(self, column: str) -> ConfigError:
        return self.error(f"has arrays of several shapes in {column!r}; give all one shape")

    def error(self, problem: str, **more: Any) -> ConfigError:
        """The error of this split; `more` is as for ConfigError."""
        return self.refuse(f"the split {self.name!r} {problem}", **more)


def _kind(found: "pyarrow.DataType") -> Kind:
    import pyarrow as pa

    types = pa.types
    if types.is_string(found) or types.is_large_string(found):
        return "text"
    if types.is_integer(found) or types.is_boolean(found):
        return "integers"
    if types.is_floating(found):
        return "floats"
    if types.is_binary(found) or types.is_large_binary(found):
        return "image"
    if types.is_struct(found):
        return "image" if "bytes" in [field.name for field in found.fields] else "other"
    if isinstance(found, pa.ExtensionType):
        found = found.storage_type
    while _is_list(found):
        found = found.value_type
        if _kind(found) in ("integers", "floats"):
            return "numbers"
    return "other"


def _is_list(found: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    kinds = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(is_one(found) for is_one in kinds)
