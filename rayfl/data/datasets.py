"""What a data set is, and what a source of one has to do.

A source (rayfl/data/sources/) reads arrays from disk; `Source.load` checks them, so all that follows can
rely on what `Dataset` promises. A new source is a subclass with a `read` method that ends in `from_arrays`.

Shapes: n samples, H x W pixels, C channels, F features.
"""

import ctypes
import os
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rayfl.errors import ConfigError

Samples = tuple[np.ndarray, np.ndarray]  # x, y


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test set in memory, C-contiguous.

    A model sees (x - mean) / std, where uint8 x has been divided by 255 first.
    """

    name: str
    x_train: np.ndarray  # [n, H, W, C] uint8 or float32 for images, [n, F] float32 for features
    y_train: np.ndarray  # [n] int64, 0..num_classes-1
    x_test: np.ndarray
    y_test: np.ndarray
    mean: np.ndarray  # [C] or [F] float32
    std: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()  # names of the domains or writers; () where there are none
    group_train: np.ndarray | None = None  # [n] int64, 0..len(groups)-1
    group_test: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample as a model sees it: (C, H, W) or (F,)."""
        *size, last = self.x_train.shape[1:]
        return (last, *size)


def name_of(path: str) -> str:
    """What a data set in this file or directory is called; `.` has the directory's name."""
    return Path(os.path.abspath(os.path.expanduser(path))).name or "data"


def from_arrays(
    name: str,
    train: Samples,
    test: Samples,
    classes: Sequence[str] | None = None,
    normalise: tuple[Sequence[float], Sequence[float]] | None = None,
    groups: tuple[np.ndarray, np.ndarray | None] | None = None,
) -> Dataset:
    """A Dataset of these arrays, in the types and the memory layout that it promises.

    Class names default to the class numbers, `normalise` = (mean, std) to those of the train set.
    `groups`: the domain or writer, by name or number, of each train and (if known) test sample.
    """
    names, group_train, group_test = _number(*groups) if groups else ((), None, None)
    (x_train, y_train), (x_test, y_test) = _convert(train), _convert(test)
    if classes is None:
        classes = [str(label) for label in range(int(y_train.max(initial=-1)) + 1)]
    mean, std = normalise if normalise else _mean_and_std(x_train)
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        mean=np.asarray(mean, dtype=np.float32),
        std=np.asarray(std, dtype=np.float32),
        classes=tuple(classes),
        groups=names,
        group_train=group_train,
        group_test=group_test,
    )


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Options that all sources share."""

    augment: Annotated[
        Literal["none", "flip", "flip_crop"],
        Field(description="train images: mirrored at random; flip_crop: also shifted at random"),
    ] = "none"

    @abstractmethod
    def read(self) -> Dataset:
        """Read the data as they are."""

    def load(self) -> Dataset:
        """Read and check the data. Raises ConfigError, which says what is wrong with them."""
        dataset = self.read()
        _give_back_memory()
        _check(dataset)
        if self.augment != "none" and len(dataset.sample_shape) != 3:
            raise ConfigError(
                f"data.augment = {self.augment!r}: works on images, but the samples of "
                f"{dataset.name!r} are vectors of {dataset.sample_shape[0]} features; use 'none'"
            )
        return dataset


def _give_back_memory() -> None:
    """What reading leaves free, hundreds of MB for CIFAR-10, the allocators would keep."""
    if pyarrow := sys.modules.get("pyarrow"):
        pyarrow.default_memory_pool().release_unused()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _convert(samples: Samples) -> Samples:
    """Contiguous arrays, in Dataset's types where that loses nothing; `_check` refuses the rest."""
    x, y = samples
    if x.ndim == 3:
        x = x[..., None]  # grey images
    if np.issubdtype(x.dtype, np.floating) or x.ndim == 2:
        x = x.astype(np.float32, copy=False)
    if np.issubdtype(y.dtype, np.integer):
        y = y.astype(np.int64, copy=False)
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def _number(
    train: np.ndarray, test: np.ndarray | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """The names of the groups in ascending order, and the number of each sample's group."""
    known = np.unique(train if test is None else np.concatenate((train, test)))
    group_train = np.searchsorted(known, train).astype(np.int64)
    group_test = None if test is None else np.searchsorted(known, test).astype(np.int64)
    return tuple(map(str, known)), group_train, group_test


def _mean_and_std(x: np.ndarray) -> Samples:
    """Mean and standard deviation over all but the last axis; std 0 becomes 1."""
    columns = x.reshape(-1, x.shape[-1])
    if x.dtype == np.uint8:
        # From the counts of the 256 values: exact, and without a floating-point copy of the data.
        values = np.arange(256) / 255
        counts = np.stack([np.bincount(column, minlength=256) for column in columns.T])
        mean = counts @ values / len(columns)
        std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / len(columns))
    else:
        mean, std = columns.mean(axis=0, dtype=np.float64), columns.std(axis=0, dtype=np.float64)
    return mean, np.where(std > 0, std, 1.0)


def _check(dataset: Dataset) -> None:
    """Raise ConfigError unless the arrays are as `Dataset` says."""
    for split in ("train", "test"):
        x, y = getattr(dataset, f"x_{split}"), getattr(dataset, f"y_{split}")
        group = getattr(dataset, f"group_{split}")
        if problem := _problem(dataset, x, y) or _group_problem(dataset, group, len(y)):
            raise ConfigError(f"data.name: the {split} data of {dataset.name!r} {problem}")
    shapes = dataset.x_train.shape[1:], dataset.x_test.shape[1:]
    if shapes[0] != shapes[1] or dataset.x_train.dtype != dataset.x_test.dtype:
        raise ConfigError(
            f"data.name: train and test samples of {dataset.name!r} differ: {shapes[0]} "
            f"{dataset.x_train.dtype} and {shapes[1]} {dataset.x_test.dtype}; make them alike"
        )
    absent = np.flatnonzero(np.bincount(dataset.y_train, minlength=dataset.num_classes) == 0)
    if len(absent) or dataset.num_classes < 2:
        raise ConfigError(
            f"data.name: {dataset.name!r} needs 2 or more classes with train samples in each; "
            f"it has {dataset.num_classes}, without samples: {absent[:10].tolist()}; "
            "number the labels 0, 1, 2, ... without gaps"
        )
    # Last: mean and std of bad data are bad too, and the data are the better thing to name.
    channels = (dataset.x_train.shape[-1],)
    if not dataset.mean.shape == dataset.std.shape == channels or not (dataset.std > 0).all():
        raise ConfigError(
            f"data.name: mean and std of {dataset.name!r} must have shape {channels} and std > 0, "
            f"not {dataset.mean} and {dataset.std}"
        )


def _problem(dataset: Dataset, x: np.ndarray, y: np.ndarray) -> str | None:
    allowed = (np.float32,) if x.ndim == 2 else (np.uint8, np.float32)
    if x.ndim not in (2, 4) or x.dtype not in allowed:
        return (
            f"are {x.dtype} {list(x.shape)}; must be uint8 or float, "
            "[n, F], [n, H, W] or [n, H, W, C]"
        )
    if y.dtype != np.int64 or y.shape != (len(x),):
        return f"have labels {y.dtype} {list(y.shape)}; must be integers [{len(x)}], one per sample"
    if x.size == 0:
        return "are empty"
    if not 0 <= y.min() <= y.max() < dataset.num_classes:
        return (
            f"have labels from {y.min()} to {y.max()}; must be from 0 to {dataset.num_classes - 1}"
        )
    if x.dtype == np.float32 and not np.isfinite(x).all():
        return "have values that are not finite; remove or fill them"
    if not (x.flags.c_contiguous and y.flags.c_contiguous):
        return "are not C-contiguous; build the Dataset with from_arrays"
    return None


def _group_problem(dataset: Dataset, group: np.ndarray | None, samples: int) -> str | None:
    if group is None:
        return None
    if group.dtype != np.int64 or group.shape != (samples,):
        return f"have groups {group.dtype} {list(group.shape)}; must be int64 [{samples}]"
    if not 0 <= group.min() <= group.max() < len(dataset.groups):
        return (
            f"have groups from {group.min()} to {group.max()}; must be from 0 to "
            f"{len(dataset.groups) - 1}, the number of a name in `groups`"
        )
    return None
