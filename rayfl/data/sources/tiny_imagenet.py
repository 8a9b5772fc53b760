"""Tiny ImageNet, from the folders of the published archive tiny-imagenet-200.zip.

wnids.txt                     the 200 classes, one WordNet id a line
words.txt                     id, tab, names
train/<id>/images/*.JPEG      500 of each class
val/images/*.JPEG             the test set here: the labels of test/ were never published
val/val_annotations.txt       file, tab, id, and a bounding box
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Samples, Source, from_arrays
from rayfl.data.trees import Tree
from rayfl.errors import ConfigError, reason
from rayfl.text import absolute, printable

_MEAN, _STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)  # of the train set, as published
_MISSING = "'{id}' of wnids.txt has no images in train/{id}/images"


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(Source):
    """100,000 + 10,000 colour pictures in 200 classes, 64 x 64; not downloaded: unpack it yourself."""

    root: Annotated[
        str, Field(description="directory that holds tiny-imagenet-200, the unpacked archive")
    ] = "data"

    def read(self) -> Dataset:
        ids = sorted(line[0] for line in self._table("wnids.txt"))
        words = {line[0]: line[1] for line in self._table("words.txt", columns=2)}
        tree = Tree(self._folder, partial(ConfigError, key="data.root", value=self.root))
        train, test = self._train(tree, ids), self._test(tree, ids)
        return from_arrays(
            "TinyImageNet",
            train,
            test,
            classes=[words.get(id, id).partition(",")[0] for id in ids],
            normalise=(_MEAN, _STD),
            files=len(train[0]) + len(test[0]),
            left_out=tree.left_out,
        )

    def _train(self, tree: Tree, ids: list[str]) -> Samples:
        folders = [self._folder / "train" / id / "images" for id in ids]
        files = [tree.images(folder) if folder.is_dir() else [] for folder in folders]
        for id, of_class in zip(ids, files, strict=True):
            if not of_class:
                raise self._error(_MISSING.format(id=id))
        known = {folder.parent for folder in folders}
        tree.leave_out([f for f in tree.folders(self._folder / "train") if f not in known])
        labels = np.repeat(np.arange(len(ids)), [len(of_class) for of_class in files])
        return tree.pixels([file for of_class in files for file in of_class]), labels

    def _test(self, tree: Tree, ids: list[str]) -> Samples:
        lines = self._table("val/val_annotations.txt", columns=2)
        if unknown := {line[1] for line in lines} - set(ids):
            raise self._error(
                f"val/val_annotations.txt has ids that wnids.txt lacks: {sorted(unknown)[:3]}"
            )
        folder = self._folder / "val" / "images"
        files = [folder / line[0] for line in lines]
        if folder.is_dir():
            tree.leave_out(set(tree.images(folder)) - set(files))
        return tree.pixels(files), np.searchsorted(ids, [line[1] for line in lines])

    @property
    def _folder(self) -> Path:
        return absolute(self.root) / "tiny-imagenet-200"

    def _table(self, name: str, columns: int = 1) -> list[list[str]]:
        """The tab-separated lines of a file."""
        try:
            text = (self._folder / name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # no text, or a null byte in the path
            raise self._error(f"{name} cannot be read ({reason(error)})") from error
        lines = [line.split("\t") for line in text.splitlines() if line.strip()]
        if not lines or min(map(len, lines)) < columns:
            raise self._error(f"{name} must have lines of {columns} or more columns between tabs")
        return lines

    def _error(self, problem: str) -> ConfigError:
        where = printable(str(self._folder))
        return ConfigError(
            f"no Tiny ImageNet in {where}: {problem}; unpack tiny-imagenet-200.zip there",
            key="data.root",
            value=self.root,
        )
