"""Images in Parquet files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Samples, Source, from_arrays, name_of
from rayfl.data.images import decode, directory_of
from rayfl.errors import ConfigError, reason

if TYPE_CHECKING:  # pyarrow is slow to import: only the functions that use it do so
    import pyarrow


@dataclass(frozen=True, kw_only=True)
class Parquet(Source):
    """JPEG or PNG images in Parquet files, as image data sets are published on Hugging Face."""

    path: Annotated[
        str, Field(description="directory with train*.parquet and test*.parquet, or train/, test/")
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
        train, test = self._table("train"), self._table("test")
        image = self._column(train, "image_column", self.image_column, _is_image)
        label = self._column(train, "label_column", self.label_column, _is_integer)
        return from_arrays(
            name_of(self.path),
            self._samples(train, image, label),
            self._samples(test, image, label),
            classes=_class_names(train.schema.metadata, label),
            groups=self._groups(train, test),
        )

    def _table(self, split: str) -> "pyarrow.Table":
        import pyarrow as pa
        import pyarrow.parquet as pq

        directory = directory_of(self.path, "train*.parquet and test*.parquet files")
        files = sorted(directory.glob(f"{split}*.parquet"))
        files = files or sorted(directory.glob(f"{split}/*.parquet"))
        if not files:
            raise ConfigError(
                f"data.path = {self.path!r}: {directory} has no {split} files; expected "
                f"{split}*.parquet or {split}/*.parquet in it"
            )
        try:
            return pa.concat_tables([pq.read_table(file) for file in files])
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(
                f"data.path = {self.path!r}: cannot read the {split} files in {directory} "
                f"({reason(error)})"
            ) from error

    def _column(self, table: "pyarrow.Table", option: str, given: str | None, fits: Any) -> str:
        fitting = [field.name for field in table.schema if fits(field.type)]
        if option != "group_column":
            fitting = [name for name in fitting if name != self.group_column]
        wanted = fitting if given is None else [name for name in fitting if name == given]
        if len(wanted) != 1:
            raise ConfigError(
                f"data.{option} = {given!r}: must be one of the columns of a fitting type, "
                f"{fitting}; all columns of {self.path!r} are {table.column_names}"
            )
        return wanted[0]

    def _samples(self, table: "pyarrow.Table", image: str, label: str) -> Samples:
        import pyarrow as pa

        if missing := {image, label} - set(table.column_names):
            raise ConfigError(
                f"data.path = {self.path!r}: its test files have no column {missing}, which its "
                f"train files have; they have {table.column_names}"
            )
        if table[image].null_count or table[label].null_count:
            raise ConfigError(f"data.path = {self.path!r}: {image!r} or {label!r} has empty cells")
        images = table[image].combine_chunks()
        if pa.types.is_struct(images.type):
            images = images.field("bytes")
        return decode(images.to_pylist(), f"data.path = {self.path!r}"), table[label].to_numpy()

    def _groups(
        self, train: "pyarrow.Table", test: "pyarrow.Table"
    ) -> tuple[np.ndarray, np.ndarray | None] | None:
        """The group of each train sample, and of each test sample if the test files say it."""
        if self.group_column is None:
            return None
        group = self._column(train, "group_column", self.group_column, _is_name)
        tables = [train, test] if group in test.column_names else [train]
        kinds = {str(table.schema.field(group).type) for table in tables}
        if len(kinds) > 1 or any(table[group].null_count for table in tables):
            raise ConfigError(
                f"data.group_column = {group!r}: must have one type and no empty cells in the train and "
                f"test files of {self.path!r}; the types are {sorted(kinds)}"
            )
        columns = [table[group].to_numpy() for table in tables]
        return columns[0], columns[1] if len(columns) > 1 else None


def _is_image(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_integer(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind)


def _is_name(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> Sequence[str] | None:
    """The class names that Hugging Face's `datasets` writes into the schema, if it did."""
    described = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    return described.get("info", {}).get("features", {}).get(label, {}).get("names")
