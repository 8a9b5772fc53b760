"""Image files in directories that are named after their classes, and above those after their domains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Samples, Source, from_arrays
from rayfl.data.trees import Tree, name_of, tree_at
from rayfl.text import printable

_SPLITS = ("train", "test")
_Size = Annotated[int, Field(ge=1, le=4096, description="images are resized to size x size pixels")]


class _Image(NamedTuple):
    domain: str
    label: str
    file: Path


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """Image files in train/<class>/ and test/<class>/, at any depth below."""

    path: Annotated[str, Field(description="directory with train/<class>/* and test/<class>/*")]
    size: _Size

    def read(self) -> Dataset:
        tree = tree_at(self.path, "train/<class>/* and test/<class>/*")
        tree.leave_out(f for f in tree.folders(tree.root) if f.name not in _SPLITS)
        folders = [_classes(tree, split) for split in _SPLITS]
        classes, test_classes = ({folder.name for folder in of_split} for of_split in folders)
        if test_classes != classes:
            raise tree.refuse(
                "train/ and test/ must have the same classes; only in "
                f"one of them: {sorted(classes ^ test_classes)}"
            )
        train, test = (_images(tree, "", of_split) for of_split in folders)
        return _dataset(tree, train, test, self.size)


@dataclass(frozen=True, kw_only=True)
class DomainFolder(Source):
    """Image files in <domain>/<class>/, as OfficeHome, PACS and DomainNet are published."""

    path: Annotated[
        str,
        Field(description="directory with <domain>/<class>/*, or with train/ and test/ of such"),
    ]
    size: _Size
    test_fraction: Annotated[
        float,
        Field(
            gt=0, lt=1, description="test share of each domain and class, unless there is a test/"
        ),
    ] = 0.2

    def read(self) -> Dataset:
        tree = tree_at(self.path, "<domain>/<class>/* in it")
        train, test = self._splits(tree)
        if unknown := {image.label for image in test} - {image.label for image in train}:
            raise tree.refuse(f"test/ has classes without train images: {sorted(unknown)}")
        domains, of_test = (np.array([i.domain for i in split]) for split in (train, test))
        return _dataset(tree, train, test, self.size, (domains, of_test))

    def _splits(self, tree: Tree) -> tuple[list[_Image], list[_Image]]:
        """The train and the test images: as published, or split here."""
        folders = tree.folders(tree.root)
        published = [folder for folder in folders if folder.name in _SPLITS]
        if not published:
            return self._split(_of_domains(tree, tree.root, folders))
        if len(published) == 1:
            raise tree.refuse(
                f"there is a {published[0].name}/ without its other half; "
                "train/ and test/ hold domains each, or else there is neither of them"
            )
        tree.leave_out(folder for folder in folders if folder not in published)
        test, train = (_of_domains(tree, split, tree.folders(split)) for split in published)
        return train, test

    def _split(self, images: list[_Image]) -> tuple[list[_Image], list[_Image]]:
        """Every (1 / test_fraction)-th image of a domain and class is a test image, the same for ever."""
        train: list[_Image] = []
        test: list[_Image] = []
        for _, alike in groupby(images, key=lambda image: image[:2]):
            for rank, image in enumerate(alike):
                is_test = int((rank + 1) * self.test_fraction) > int(rank * self.test_fraction)
                (test if is_test else train).append(image)
        return train, test


def _classes(tree: Tree, split: str) -> list[Path]:
    """The folders of the classes of a split."""
    directory = tree.root / split
    folders = tree.folders(directory) if directory.is_dir() else []
    if not folders:
        raise tree.refuse(
            f"no class directories in {printable(str(directory))}; "
            f"expected the layout {split}/<class>/<image file>"
        )
    return folders


def _of_domains(tree: Tree, directory: Path, domains: Iterable[Path]) -> list[_Image]:
    """All images of these domains in `directory`, sorted."""
    images = [i for domain in domains for i in _images(tree, domain.name, tree.folders(domain))]
    if not images:
        raise tree.refuse(
            f"no images in {printable(str(directory))}; expected the layout "
            "<domain>/<class>/<image file>"
        )
    return sorted(images)


def _images(tree: Tree, domain: str, classes: Iterable[Path]) -> list[_Image]:
    """The images in these folders of classes; each must have some."""
    images: list[_Image] = []
    for folder in classes:
        files = tree.images(folder)
        if not files:
            raise tree.refuse(
                f"no images in the folder of a class, {tree.name(folder)}/; put some there, or "
                "remove it"
            )
        images += [_Image(domain, folder.name, file) for file in files]
    return images


def _dataset(
    tree: Tree,
    train: Sequence[_Image],
    test: Sequence[_Image],
    size: int,
    domains: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """The pixels of these images; the classes are those of the train images, in ascending order."""
    classes = sorted({image.label for image in train})
    number = {label: k for k, label in enumerate(classes)}

    def samples(images: Sequence[_Image]) -> Samples:
        labels = np.array([number[image.label] for image in images], dtype=np.int64)
        return tree.pixels([image.file for image in images], size), labels

    return from_arrays(
        name_of(tree.root),
        samples(train),
        samples(test),
        classes,
        groups=domains,
        files=len(train) + len(test),
        left_out=tree.left_out,
    )
