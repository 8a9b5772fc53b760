"""The types of a data set and of a source of one.

A source (rayfl/data/sources/) reads arrays from disk; `Source.load` checks them, so all that follows can
rely on what `Dataset` promises. A new source is a subclass with a `read` method that ends in `from_arrays`.

Shapes: n samples, H x W pixels, C channels, F features, L tokens, D numbers.
"""

import ctypes
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rayfl.data.checks import account, check, check_arrays, check_precision, refuse
from rayfl.errors import ConfigError
from rayfl.provenance import data_digest
from rayfl.text import printable

Samples = tuple[np.ndarray, np.ndarray]  # x, y
# Targets: a class of each sample, a token at each of its positions, or numbers.
Kind = Literal["classes", "tokens", "numbers"]

_COUNTED = 1 << 20  # pixels at once


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test set in memory, C-contiguous.

    A model sees (x - mean) / std, where uint8 x has been divided by 255 first; tokens it sees as they are.
    """

    name: str
    # [n, H, W, C] uint8 or float32 for images, [n, F] float32 for features, [n, L] int64 for tokens
    x_train: np.ndarray
    # [n] int64, 0..num_classes-1; for tokens to predict [n, L] int64, of as many tokens; or numbers,
    # [n, D] float32
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    mean: np.ndarray  # [C] or [F] float32; for tokens, [L], 0 and 1
    std: np.ndarray
    classes: tuple[str, ...]  # or all tokens that there are to predict; () for numbers
    groups: tuple[str, ...] = ()  # names of the domains or writers; () where there are none
    group_train: np.ndarray | None = None  # [n] int64, 0..len(groups)-1
    group_test: np.ndarray | None = None
    files: int | None = None  # that were read
    # Names of files and folders beside them that were not read.
    left_out: tuple[str, ...] = ()
    read: tuple[str, ...] = ()  # both in words, a line each; `Source.load` fills it
    digest: str = ""  # of all of the above that a result depends on; `Source.load` fills it

    @property
    def kind(self) -> Kind:
        """Kind of the targets."""
        if self.y_train.dtype == np.float32:
            return "numbers"
        return "classes" if self.y_train.ndim == 1 else "tokens"

    @property
    def num_classes(self) -> int:
        """Classes, or tokens that there are to predict; of numbers D."""
        return self.y_train.shape[1] if self.kind == "numbers" else len(self.classes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what a model gives for one sample: (classes,), (L, tokens) or (D,)."""
        length = self.y_train.shape[1:] if self.kind == "tokens" else ()
        return (*length, self.num_classes)

    def categories(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """A category of each train sample, int64 `[n]`, and their names: its class, else its group."""
        if self.kind == "classes":
            return self.y_train, self.classes
        if self.group_train is not None:
            return self.group_train, self.groups
        return np.zeros(len(self.y_train), np.int64), ("all",)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample as a model sees it: (C, H, W) or (F,)."""
        *size, last = self.x_train.shape[1:]
        return (last, *size)

    @property
    def has_tokens(self) -> bool:
        """True if the samples are integers that are no images, such as the words of a text."""
        return self.x_train.dtype == np.int64

    @property
    def vocabulary(self) -> int:
        """Number of tokens that samples may have, if they are tokens."""
        largest = max(x.max() for x in (self.x_train, self.x_test))
        return max(int(largest) + 1, self.num_classes if self.kind == "tokens" else 0)

    def trial(self) -> np.ndarray:
        """Two samples as a model may see them, to try it with: zeros; the smallest and largest token."""
        if not self.has_tokens:
            return np.zeros((2, *self.sample_shape), np.float32)
        both = self.x_train, self.x_test
        extremes = min(x.min() for x in both), max(x.max() for x in both)
        return np.repeat(np.array(extremes), self.sample_shape[0]).reshape(2, -1)


def from_arrays(
    name: str,
    train: Samples,
    test: Samples,
    classes: Sequence[str] | None = None,
    normalise: tuple[Sequence[float], Sequence[float]] | None = None,
    groups: tuple[np.ndarray, np.ndarray | None] | None = None,
    files: int | None = None,
    left_out: Sequence[str] = (),
) -> Dataset:
    """A Dataset of these arrays, in the types and the memory layout that it promises.

    Targets are integers [n], or [n, L] for samples of L tokens, or floats [n, D]. Class names default to the
    class numbers, `normalise` = (mean, std) to those of the train set.
    `groups`: the domain or writer, by name or number, of each train and (if known) test sample.
    `files`, `left_out`: what was read, and the names of what was not.
    """
    names, group_train, group_test = _number(*groups) if groups else ((), None, None)
    check_precision(name, train[0])
    (x_train, y_train), (x_test, y_test) = _convert(train), _convert(test)
    check_arrays(name, "train", x_train, y_train)
    check_arrays(name, "test", x_test, y_test)
    if y_train.dtype == np.float32:
        classes = ()
    elif classes is None:
        classes = _numbers(name, y_train)
    mean, std = normalise if normalise else _mean_and_std(x_train)
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        mean=np.asarray(mean, dtype=np.float32),
        std=np.asarray(std, dtype=np.float32),
        classes=tuple(map(printable, classes)),
        groups=names,
        group_train=group_train,
        group_test=group_test,
        files=files,
        left_out=tuple(left_out),
    )


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Options that all sources share."""

    augment: Annotated[
        Literal["none", "flip", "flip_crop"],
        Field(description="train images: mirrored at random; flip_crop: also shifted at random"),
    ] = "none"
    validation: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="share of each client's train samples that is held out, to choose by; null: none",
        ),
    ] = None

    @abstractmethod
    def read(self) -> Dataset:
        """Read the data as they are."""

    def load(self) -> Dataset:
        """Read and check the data. Raises ConfigError, which says what is wrong with them."""
        dataset = self.read()
        give_back_memory()
        check(dataset)
        if self.augment != "none" and len(dataset.sample_shape) != 3:
            raise ConfigError(
                "works on images, but the samples of "
                f"{dataset.name!r} are vectors of {dataset.sample_shape[0]} features; use 'none'",
                key="data.augment",
                value=self.augment,
            )
        return replace(dataset, read=account(dataset), digest=_digest(dataset))


def _digest(data: Dataset) -> str:
    samples = data.x_train, data.y_train, data.x_test, data.y_test
    arrays = (*samples, data.mean, data.std, data.group_train, data.group_test)
    return data_digest(arrays, (*data.classes, *data.groups))


def give_back_memory() -> None:
    """Return freed memory to the operating system: hundreds of MB of CIFAR-10, or of a million clients."""
    if pyarrow := sys.modules.get("pyarrow"):
        pyarrow.default_memory_pool().release_unused()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _convert(samples: Samples) -> Samples:
    """Contiguous arrays, in Dataset's types where that loses nothing; `check_arrays` refuses the rest."""
    x, y = samples
    if y.ndim == 2 and y.dtype.kind == "f":  # [n] may be class numbers that were written as floats
        with np.errstate(over="ignore", invalid="ignore"):
            y = y.astype(np.float32, copy=False)
    if x.ndim == 3:
        x = x[..., None]  # grey images
    if x.dtype.kind in "bf" or (x.ndim == 2 and x.dtype == np.uint8):
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused later
            x = x.astype(np.float32, copy=False)
    elif x.ndim == 2:
        x = _int64(x)
    return np.ascontiguousarray(x), np.ascontiguousarray(_int64(y))


def _int64(x: np.ndarray) -> np.ndarray:
    """Integers of any width as int64, unless one is too large for it; other arrays as they are."""
    fits = x.dtype.kind == "i" or (
        x.dtype.kind == "u" and x.max(initial=0) <= np.iinfo(np.int64).max
    )
    return x.astype(np.int64, copy=False) if fits else x


def _numbers(name: str, labels: np.ndarray) -> list[str]:
    """The names of classes that have none."""
    last = int(labels.max())
    if last >= labels.size:  # before a list is made of them: a stray label may be in the billions
        raise refuse(
            f"the train data of {name!r} have labels up to {last}, but {labels.size} samples; "
            "number the labels 0, 1, 2, ... without gaps"
        )
    return [str(label) for label in range(last + 1)]


def _number(
    train: np.ndarray, test: np.ndarray | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """The names of the groups in ascending order, and the number of each sample's group."""
    known = np.unique(train if test is None else np.concatenate((train, test)))
    group_train = np.searchsorted(known, train).astype(np.int64)
    group_test = None if test is None else np.searchsorted(known, test).astype(np.int64)
    return tuple(printable(str(name)) for name in known), group_train, group_test


def _mean_and_std(x: np.ndarray) -> Samples:
    """Mean and standard deviation over all but the last axis; 1 for what is constant. Tokens: 0 and 1."""
    columns = x.reshape(-1, x.shape[-1])
    if x.dtype == np.int64:
        return np.zeros(x.shape[-1]), np.ones(x.shape[-1])
    if x.dtype == np.uint8:
        # From the counts of the 256 values: exact, and without a floating-point copy of the data. Some rows
        # at a time, for bincount makes an int64 copy.
        values = np.arange(256) / 255
        counts = np.zeros((x.shape[-1], 256), np.int64)
        for start in range(0, len(columns), _COUNTED):
            for total, column in zip(counts, columns[start : start + _COUNTED].T, strict=True):
                total += np.bincount(column, minlength=256)
        mean = counts @ values / len(columns)
        std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / len(columns))
        constant = counts.max(axis=1) == len(columns)  # rounding may leave such a std of 1e-17
    else:
        with np.errstate(invalid="ignore"):  # of infinite values, which are refused later
            constant = columns.max(axis=0) == columns.min(axis=0)
            mean = columns.mean(axis=0, dtype=np.float64)
            std = columns.std(axis=0, dtype=np.float64)
    return mean, np.where((std > 0) & ~constant, std, 1.0)
