"""The data sources: one dataclass each, its fields are the options of `data:`."""

from rayfl.data.datasets import Source
from rayfl.data.sources.diabetes import Diabetes
from rayfl.data.sources.digits import Digits
from rayfl.data.sources.folders import DomainFolder, ImageFolder
from rayfl.data.sources.hf import HuggingFace
from rayfl.data.sources.npz import NPZ
from rayfl.data.sources.parquet import Parquet
from rayfl.data.sources.shakespeare import Shakespeare
from rayfl.data.sources.tiny_imagenet import TinyImageNet
from rayfl.data.sources.torchvision import CIFAR10, CIFAR100, EMNIST, MNIST, SVHN, FashionMNIST

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion_mnist": FashionMNIST,
    "emnist": EMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "tiny_imagenet": TinyImageNet,
    "diabetes": Diabetes,
    "shakespeare": Shakespeare,
    "hf": HuggingFace,
    "parquet": Parquet,
    "npz": NPZ,
    "image_folder": ImageFolder,
    "domain_folder": DomainFolder,
}
