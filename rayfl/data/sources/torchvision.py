"""Data sets that torchvision can download."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Samples, Source, from_arrays
from rayfl.errors import ConfigError, reason
from rayfl.text import absolute, printable


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(Source):
    """A dataset that torchvision can download, and the class there of the same name."""

    folder: ClassVar[str]  # where torchvision looks for `files`, below root
    files: ClassVar[str]
    normalise: ClassVar[tuple[Sequence[float], Sequence[float]] | None]  # published mean and std

    root: Annotated[str, Field(description="directory that holds the data sets")] = "data"
    download: Annotated[bool, Field(description="download the files if they are missing")] = False

    def read(self) -> Dataset:
        from torchvision import datasets

        name = type(self).__name__
        dataset_class = getattr(datasets, name)
        try:
            train, test = (self.open(dataset_class, is_train) for is_train in (True, False))
        except Exception as error:
            raise self._unreadable(name, reason(error)) from error
        return from_arrays(
            name,
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

    def _unreadable(self, name: str, why: str) -> ConfigError:
        directory = printable(str(absolute(self.root) / self.folder))
        by_hand = f"put the files there yourself: {self.files}"
        if self.download:
            return ConfigError(
                f"{name} could not be downloaded to {directory} ({why}); check the network, or "
                f"{by_hand}",
                key="data.download",
                value=True,
            )
        return ConfigError(
            f"cannot read {name} in {directory} ({why}); set data.download=true, or {by_hand}",
            key="data.root",
            value=self.root,
            keys=("data.download",),
        )


@dataclass(frozen=True, kw_only=True)
class MNIST(TorchvisionSource):
    """60,000 + 10,000 handwritten digits, 28 x 28."""

    folder = "MNIST/raw"
    files = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    normalise = ((0.1307,), (0.3081,))


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(TorchvisionSource):
    """60,000 + 10,000 pictures of clothes in 10 classes, 28 x 28."""

    folder = "FashionMNIST/raw"
    files = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    normalise = ((0.2860,), (0.3530,))


@dataclass(frozen=True, kw_only=True)
class EMNIST(TorchvisionSource):
    """Handwritten letters and digits, 28 x 28; `split` selects one of its six versions."""

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

    folder = "cifar-10-batches-py"
    files = "data_batch_1 to data_batch_5, test_batch, batches.meta"
    normalise = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True, kw_only=True)
class CIFAR100(TorchvisionSource):
    """50,000 + 10,000 colour pictures in 100 classes, 32 x 32."""

    folder = "cifar-100-python"
    files = "train, test, meta"
    normalise = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@dataclass(frozen=True, kw_only=True)
class SVHN(TorchvisionSource):
    """73,257 + 26,032 colour pictures of house numbers, 32 x 32."""

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
