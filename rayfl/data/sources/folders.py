"""Image files in directories that are named after their classes, and above those after their domains."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Samples, Source, from_arrays, name_of
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
        return from_arrays(name_of(self.path), train, test, classes)

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


class _Image(NamedTuple):
    domain: str
    label: str
    file: Path


@dataclass(frozen=True, kw_only=True)
class DomainFolder(Source):
    """Image files in <domain>/<class>/, as OfficeHome, PACS and DomainNet are published."""

    path: Annotated[
        str,
        Field(description="directory with <domain>/<class>/*, or with train/ and test/ of such"),
    ]
    size: Annotated[int, Field(ge=1, description="images are resized to size x size pixels")]
    test_fraction: Annotated[
        float,
        Field(
            gt=0, lt=1, description="test share of each domain and class, unless there is a test/"
        ),
    ] = 0.2

    def read(self) -> Dataset:
        directory = directory_of(self.path, "<domain>/<class>/* in it")
        if (directory / "train").is_dir() and (directory / "test").is_dir():
            train, test = self._images(directory / "train"), self._images(directory / "test")
        else:
            train, test = self._split(self._images(directory))
        classes = sorted({image.label for image in train})
        if unknown := {image.label for image in test} - set(classes):
            raise ConfigError(
                f"data.path = {self.path!r}: test/ has classes without train images: {sorted(unknown)}"
            )
        return from_arrays(
            name_of(self.path),
            self._samples(train, classes),
            self._samples(test, classes),
            classes,
            groups=(_domains(train), _domains(test)),
        )

    def _images(self, directory: Path) -> list[_Image]:
        """All images, sorted."""
        images = [
            _Image(file.parent.parent.name, file.parent.name, file)
            for file in directory.glob("*/*/*")
            if file.suffix.lower() in SUFFIXES
        ]
        if not images:
            raise ConfigError(
                f"data.path = {self.path!r}: no images in {directory}; expected the layout "
                "<domain>/<class>/<image file>"
            )
        return sorted(images)

    def _split(self, images: list[_Image]) -> tuple[list[_Image], list[_Image]]:
        """Every (1 / test_fraction)-th image of a domain and class is a test image, the same for ever."""
        train: list[_Image] = []
        test: list[_Image] = []
        for _, alike in groupby(images, key=lambda image: image[:2]):
            for rank, image in enumerate(alike):
                is_test = int((rank + 1) * self.test_fraction) > int(rank * self.test_fraction)
                (test if is_test else train).append(image)
        return train, test

    def _samples(self, images: list[_Image], classes: Sequence[str]) -> Samples:
        labels = np.searchsorted(classes, [image.label for image in images])
        given = f"data.path = {self.path!r}"
        return decode([image.file for image in images], given, self.size), labels


def _domains(images: list[_Image]) -> np.ndarray:
    return np.array([image.domain for image in images])
