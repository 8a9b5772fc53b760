"""Where the data come from: one dataclass per source, its fields are the options of `data:`.

A source reads arrays from disk; `Source.load` checks them, so all that follows can rely on what
`Dataset` promises. A new source is a subclass with a `read` method that ends in `from_arrays`.

Shapes: n samples, H x W pixels, C channels, F features.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfl.errors import ConfigError

if TYPE_CHECKING:  # pyarrow is slow to import: only the functions that use it do so
    import pyarrow

_DECODE_THREADS = 4  # Pillow decodes without holding the interpreter lock ...
_DECODE_CHUNK = 500  # ... but on small images one task per image costs more than it gains
_IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

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
        _check(dataset)
        if self.augment != "none" and len(dataset.sample_shape) != 3:
            raise ConfigError(
                f"data.augment = {self.augment!r}: works on images, but the samples of "
                f"{dataset.name!r} are vectors of {dataset.sample_shape[0]} features; use 'none'"
            )
        return dataset


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """1,797 real handwritten digits of 8 x 8 pixels; they come with scikit-learn."""

    def read(self) -> Dataset:
        from sklearn.datasets import load_digits

        flat, y = (np.asarray(array) for array in load_digits(return_X_y=True))
        x = np.rint(flat * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)  # 0..16 -> 0..255
        # Every fifth sample of each class is a test sample: stratified, and the same for ever.
        by_class = np.argsort(y, kind="stable")
        rank = np.empty_like(y)
        rank[by_class] = np.arange(len(y)) - np.searchsorted(y[by_class], y[by_class])
        test = rank % 5 == 4
        return from_arrays("digits", (x[~test], y[~test]), (x[test], y[test]))


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(Source):
    """A dataset that torchvision can download. Subclasses say only what differs."""

    torchvision_name: ClassVar[str]
    folder: ClassVar[str]  # where torchvision looks for `files`, below root
    files: ClassVar[str]
    normalise: ClassVar[tuple[Sequence[float], Sequence[float]] | None]  # published mean and std

    root: Annotated[str, Field(description="directory that holds the data sets")] = "data"
    download: Annotated[bool, Field(description="download the files if they are missing")] = False

    def read(self) -> Dataset:
        from torchvision import datasets

        dataset_class = getattr(datasets, self.torchvision_name)
        try:
            train, test = (self.open(dataset_class, is_train) for is_train in (True, False))
        except Exception as error:
            raise self._unreadable(error) from error
        return from_arrays(
            self.torchvision_name,
            self.arrays(train),
            self.arrays(test),
            classes=self.class_names(train),
            normalise=self.normalise,
        )

    def open(self, dataset_class: Any, is_train: bool) -> Any:
        return dataset_class(self.root, train=is_train, download=self.download)

    def arrays(self, dataset: Any) -> Samples:
        x = np.asarray(dataset.data)
        return (x if x.ndim == 4 else x[..., None]), np.asarray(dataset.targets)

    def class_names(self, dataset: Any) -> Sequence[str]:
        return dataset.classes

    def _unreadable(self, error: Exception) -> ConfigError:
        directory = Path(self.root, self.folder).expanduser().absolute()
        if self.download:
            return ConfigError(
                f"data.download = true: {self.torchvision_name} could not be downloaded to "
                f"{directory} ({_one_line(error)}); check the network, or put the files there "
                f"yourself: {self.files}"
            )
        return ConfigError(
            f"data.root = {self.root!r}: cannot read {self.torchvision_name} in {directory} "
            f"({_one_line(error)}); set data.download=true, or put the files there yourself: "
            f"{self.files}"
        )


@dataclass(frozen=True, kw_only=True)
class MNIST(TorchvisionSource):
    """60,000 + 10,000 handwritten digits, 28 x 28."""

    torchvision_name = "MNIST"
    folder = "MNIST/raw"
    files = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    normalise = ((0.1307,), (0.3081,))


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(TorchvisionSource):
    """60,000 + 10,000 pictures of clothes in 10 classes, 28 x 28."""

    torchvision_name = "FashionMNIST"
    folder = "FashionMNIST/raw"
    files = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    normalise = ((0.2860,), (0.3530,))


@dataclass(frozen=True, kw_only=True)
class EMNIST(TorchvisionSource):
    """Handwritten letters and digits, 28 x 28; `split` selects one of its six versions."""

    torchvision_name = "EMNIST"
    folder = "EMNIST/raw"
    files = "emnist-SPLIT-{train,test}-{images-idx3,labels-idx1}-ubyte"
    normalise = None  # the versions differ: computed

    split: Annotated[
        Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"],
        Field(description="which version; byclass has 62 classes, balanced 47, letters 26"),
    ] = "balanced"

    def open(self, dataset_class: Any, is_train: bool) -> Any:
        return dataset_class(self.root, self.split, train=is_train, download=self.download)

    def arrays(self, dataset: Any) -> Samples:
        x, y = super().arrays(dataset)
        # The files hold the pictures transposed, and number the letters from 1.
        return x.transpose(0, 2, 1, 3), y - (self.split == "letters")

    def class_names(self, dataset: Any) -> Sequence[str]:
        return dataset.classes[1:] if self.split == "letters" else dataset.classes


@dataclass(frozen=True, kw_only=True)
class CIFAR10(TorchvisionSource):
    """50,000 + 10,000 colour pictures in 10 classes, 32 x 32."""

    torchvision_name = "CIFAR10"
    folder = "cifar-10-batches-py"
    files = "data_batch_1 to data_batch_5, test_batch, batches.meta"
    normalise = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True, kw_only=True)
class CIFAR100(TorchvisionSource):
    """50,000 + 10,000 colour pictures in 100 classes, 32 x 32."""

    torchvision_name = "CIFAR100"
    folder = "cifar-100-python"
    files = "train, test, meta"
    normalise = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@dataclass(frozen=True, kw_only=True)
class SVHN(TorchvisionSource):
    """73,257 + 26,032 colour pictures of house numbers, 32 x 32."""

    torchvision_name = "SVHN"
    folder = ""
    files = "train_32x32.mat, test_32x32.mat"
    normalise = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))

    def open(self, dataset_class: Any, is_train: bool) -> Any:
        split = "train" if is_train else "test"
        return dataset_class(self.root, split=split, download=self.download)

    def arrays(self, dataset: Any) -> Samples:
        return dataset.data.transpose(0, 2, 3, 1), dataset.labels

    def class_names(self, dataset: Any) -> Sequence[str]:
        return [str(digit) for digit in range(10)]


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

    def read(self) -> Dataset:
        train, test = self._table("train"), self._table("test")
        image = self._column(train, "image_column", self.image_column, _is_image)
        label = self._column(train, "label_column", self.label_column, _is_integer)
        return from_arrays(
            Path(self.path).name,
            self._samples(train, image, label),
            self._samples(test, image, label),
            classes=_class_names(train.schema.metadata, label),
        )

    def _table(self, split: str) -> "pyarrow.Table":
        import pyarrow as pa
        import pyarrow.parquet as pq

        directory = _directory(self.path, "train*.parquet and test*.parquet files")
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
                f"({_one_line(error)})"
            ) from error

    def _column(self, table: "pyarrow.Table", option: str, given: str | None, fits: Any) -> str:
        fitting = [field.name for field in table.schema if fits(field.type)]
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
        return _decode(images.to_pylist(), self.path), table[label].to_numpy()


@dataclass(frozen=True, kw_only=True)
class NPZ(Source):
    """Arrays x_train, y_train, x_test and y_test in one NumPy .npz file."""

    path: Annotated[str, Field(description="the .npz file; x: uint8 or float, [n, F] or images")]

    def read(self) -> Dataset:
        file = Path(self.path).expanduser().absolute()
        names = ("x_train", "y_train", "x_test", "y_test")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                x_train, y_train, x_test, y_test = (arrays[name] for name in names)
        except Exception as error:  # NumPy has many: no file, no zip, a missing name, objects
            raise ConfigError(
                f"data.path = {self.path!r}: cannot read {file} ({_one_line(error)}); expected "
                f"an .npz file with the numeric arrays {', '.join(names)}"
            ) from error
        return from_arrays(file.stem, (x_train, y_train), (x_test, y_test))


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
        directory = _directory(self.path, "train/<class>/* and test/<class>/*") / split
        classes = sorted(entry.name for entry in directory.glob("*") if entry.is_dir())
        if not classes:
            raise ConfigError(
                f"data.path = {self.path!r}: no class directories in {directory}; expected the "
                f"layout {split}/<class>/<image file>"
            )
        return classes

    def _samples(self, split: str, classes: list[str]) -> Samples:
        directory = _directory(self.path, "") / split
        files = [
            sorted(f for f in (directory / name).iterdir() if f.suffix.lower() in _IMAGE_SUFFIXES)
            for name in classes
        ]
        images = [file for of_class in files for file in of_class]
        labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in files])
        return _decode(images, self.path, self.size), labels


SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion_mnist": FashionMNIST,
    "emnist": EMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "parquet": Parquet,
    "npz": NPZ,
    "image_folder": ImageFolder,
}


def _directory(path: str, layout: str) -> Path:
    directory = Path(path).expanduser().absolute()
    if not directory.is_dir():
        raise ConfigError(
            f"data.path = {path!r}: {directory} is not a directory; expected one with {layout}"
        )
    return directory


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _is_image(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_integer(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind)


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> Sequence[str] | None:
    """The class names that Hugging Face's `datasets` writes into the schema, if it did."""
    described = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    return described.get("info", {}).get("features", {}).get(label, {}).get("names")


def _decode(images: Sequence[bytes | Path], path: str, size: int | None = None) -> np.ndarray:
    """Encoded images -> uint8 [n, H, W, C]; C is 1 if all of them are grey, otherwise 3."""
    from PIL import Image

    def decode(image: bytes | Path) -> np.ndarray:
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"{picture.mode} is more than 8 bits a pixel, which Pillow clips")
            if picture.mode not in ("L", "RGB"):
                picture = picture.convert("L" if picture.mode == "1" else "RGB")
            if size is not None:
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(picture)

    starts = range(0, len(images), _DECODE_CHUNK)
    chunks = [images[start : start + _DECODE_CHUNK] for start in starts]
    try:
        with ThreadPoolExecutor(_DECODE_THREADS) as threads:
            decoded = threads.map(lambda chunk: [decode(image) for image in chunk], chunks)
            arrays = [array for chunk in decoded for array in chunk]
    except (OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"data.path = {path!r}: an image cannot be decoded ({_one_line(error)})"
        ) from error
    sizes = {array.shape[:2] for array in arrays}
    if len(sizes) != 1:
        raise ConfigError(
            f"data.path = {path!r}: all images must have the same size, found {len(sizes)} sizes "
            f"{sorted(sizes)[:3]}; resize them, or use data.name=image_folder with data.size"
        )
    channels = 3 if any(array.ndim == 3 for array in arrays) else 1
    stacked = np.empty((len(arrays), *sizes.pop(), channels), dtype=np.uint8)
    for row, array in zip(stacked, arrays, strict=True):
        row[:] = array if array.ndim == 3 else array[..., None]
    return stacked


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
