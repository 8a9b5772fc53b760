"""Image files in directories that are named after their classes, and above those after their domains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Samples, Source, from_arrays
from rayfl.data.trees import Tree, directory_of, name_of
from rayfl.errors import ConfigError
from rayfl.text import printable

_SPLITS = ("train", "test")


class _Image(NamedTuple):
    domain: str
    label: str
    file: Path


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """Image files in train/<class>/ and test/<class>/, at any depth below."""

    path: Annotated[str, Field(description="directory with train/<class>/* and test/<class>/*")]
    size: Annotated[
        int, Field(ge=1, le=4096, description="images are resized to size x size pixels")
    ]

    def read(self) -> Dataset:
        root = directory_of(self.path, "train/<class>/* and test/<class>/*")
        tree = Tree(root, partial(ConfigError, key="data.path", value=self.path))
        tree.leave_out([f for f in tree.folders(root) if f.name not in _SPLITS])
        folders = [self._classes(tree, split) for split in _SPLITS]
        classes, test_classes = ([folder.name for folder in of_split] for of_split in folders)
        if test_classes != classes:
            raise ConfigError(
                "train/ and test/ must have the same classes; only in "
                f"one of them: {sorted(set(classes) ^ set(test_classes))}",
                key="data.path",
                value=self.path,
            )
        train, test = (
            [
                _Image("", folder.name, file)
                for folder in of_split
                for file in _of_class(tree, folder)
            ]
            for of_split in folders
        )
        return from_arrays(
            name_of(root),
            _samples(tree, train, classes, self.size),
            _samples(tree, test, classes, self.size),
            classes,
            files=len(train) + len(test),
            left_out=tree.left_out,
        )

    def _classes(self, tree: Tree, split: str) -> list[Path]:
        directory = tree.root / split
        folders = tree.folders(directory) if directory.is_dir() else []
        if not folders:
            raise ConfigError(
                f"no class directories in {printable(str(directory))}; "
                f"expected the layout {split}/<class>/<image file>",
                key="data.path",
                value=self.path,
            )
        return folders


@dataclass(frozen=True, kw_only=True)
class DomainFolder(Source):
    """Image files in <domain>/<class>/, as OfficeHome, PACS and DomainNet are published."""

    path: Annotated[
        str,
        Field(description="directory with <domain>/<class>/*, or with train/ and test/ of such"),
    ]
    size: Annotated[
        int, Field(ge=1, le=4096, description="images are resized to size x size pixels")
    ]
    test_fraction: Annotated[
        float,
        Field(
            gt=0, lt=1, description="test share of each domain and class, unless there is a test/"
        ),
    ] = 0.2

    def read(self) -> Dataset:
        root = directory_of(self.path, "<domain>/<class>/* in it")
        tree = Tree(root, partial(ConfigError, key="data.path", value=self.path))
        train, test = self._splits(tree)
        classes = sorted({image.label for image in train})
        if unknown := {image.label for image in test} - set(classes):
            raise ConfigError(
                f"test/ has classes without train images: {sorted(unknown)}",
                key="data.path",
                value=self.path,
            )
        return from_arrays(
            name_of(root),
            _samples(tree, train, classes, self.size),
            _samples(tree, test, classes, self.size),
            classes,
            groups=(_domains(train), _domains(test)),
            files=len(train) + len(test),
            left_out=tree.left_out,
        )

    def _splits(self, tree: Tree) -> tuple[list[_Image], list[_Image]]:
        """The train and the test images: as published, or split here."""
        folders = tree.folders(tree.root)
        published = [folder for folder in folders if folder.name in _SPLITS]
        if not published:
            return self._split(self._images(tree, tree.root, folders))
        if len(published) == 1:
            raise ConfigError(
                f"there is a {published[0].name}/ without its other half; "
                "train/ and test/ hold domains each, or else there is neither of them",
                key="data.path",
                value=self.path,
            )
        tree.leave_out([folder for folder in folders if folder not in published])
        test, train = (self._images(tree, split, tree.folders(split)) for split in published)
        return train, test

    def _images(self, tree: Tree, directory: Path, domains: Iterable[Path]) -> list[_Image]:
        """All images of these domains, sorted."""
        images = [
            _Image(domain.name, label.name, file)
            for domain in domains
            for label in tree.folders(domain)
            for file in _of_class(tree, label)
        ]
        if not images:
            raise ConfigError(
                f"no images in {printable(str(directory))}; expected the layout "
                "<domain>/<class>/<image file>",
                key="data.path",
                value=self.path,
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


def _of_class(tree: Tree, folder: Path) -> list[Path]:
    files = tree.images(folder)
    if not files:
        raise tree.refuse(
            f"no images in the folder of a class, {tree.name(folder)}/; put some there, or "
            "remove it"
        )
    return files


def _samples(tree: Tree, images: Sequence[_Image], classes: Sequence[str], size: int) -> Samples:
    number = {label: k for k, label in enumerate(classes)}
    labels = np.array([number[image.label] for image in images], dtype=np.int64)
    return tree.pixels([image.file for image in images], size), labels


def _domains(images: list[_Image]) -> np.ndarray:
    return np.array([image.domain for image in images])
