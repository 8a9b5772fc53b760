"""Image files in directories that are named after their classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Samples, Source, from_arrays
from rayfl.data.images import SUFFIXES, decode, directory_of
from rayfl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """Image files in train/<class>/ and test/<class>/."""

    path: Annotated[str, Field(description="directory with train/<class>/* and test/<class>/*")]
    size: Annotated[int, Field(ge=1, description="images are resized to size x size pixels")]

    def read(self) -> Dataset:
        classes = self._classes("train")
        if (test_classes := self._classes("test")) != classes:
            raise ConfigError(
                f"data.path = {self.path!r}: train/ and test/ must have the same classes; only in "
                f"one of them: {sorted(set(classes) ^ set(test_classes))}"
            )
        train, test = (self._samples(split, classes) for split in ("train", "test"))
        return from_arrays(Path(self.path).name, train, test, classes)

    def _classes(self, split: str) -> list[str]:
        directory = directory_of(self.path, "train/<class>/* and test/<class>/*") / split
        classes = sorted(entry.name for entry in directory.glob("*") if entry.is_dir())
        if not classes:
            raise ConfigError(
                f"data.path = {self.path!r}: no class directories in {directory}; expected the "
                f"layout {split}/<class>/<image file>"
            )
        return classes

    def _samples(self, split: str, classes: list[str]) -> Samples:
        directory = directory_of(self.path, "") / split
        files = [
            sorted(f for f in (directory / name).iterdir() if f.suffix.lower() in SUFFIXES)
            for name in classes
        ]
        images = [file for of_class in files for file in of_class]
        labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in files])
        return decode(images, f"data.path = {self.path!r}", self.size), labels
