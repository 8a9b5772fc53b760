"""Differences between clients beyond who owns which sample: fewer samples of some classes, other features,
wrong labels.

All of it is done once to the training arrays, before a run starts. The test set stays as it is: it measures
the model on clean, balanced data as published.

`long_tail` is the exponential profile of Cui et al., "Class-Balanced Loss Based on Effective Number of
Samples", CVPR 2019, arXiv:1901.05555. Noise that grows from client to client is Li et al., "Federated
Learning on Non-IID Data Silos", ICDE 2022, arXiv:2102.02079 (their code: the standard deviation grows
linearly from 0). Rotated groups of clients are Ghosh et al., "An Efficient Framework for Clustered
Federated Learning", NeurIPS 2020, arXiv:2006.04088: `rotation` 270 and `client_groups` 4.

Shapes: n training samples, N clients, G client groups, C classes.
"""

from dataclasses import replace
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.data.schemes.dealing import by_class
from rayfl.errors import ConfigError
from rayfl.seeds import generator

_SHIFTED = 1 << 14  # samples whose features are shifted in one vectorised step


class Heterogeneity(BaseModel):
    """Changes to the training data. Docstrings describe the keys.

    A shift of features grows from the first client group, which has none, to the last.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    imbalance_factor: float = Field(default=1.0, ge=1)
    """long tail: size of class 0 over size of the last; 1: as it is"""
    client_groups: int | None = Field(default=None, ge=2)
    """G, groups of clients whose features shift alike; null: N, one client each"""
    noise: float = Field(default=0.0, ge=0, le=1e30)
    """Gaussian noise of the last group, in standard deviations of the data"""
    rotation: float = Field(default=0.0, gt=-360, lt=360)
    """degrees that images of the last group turn to the left"""
    colour: float = Field(default=0.0, ge=0, le=1)
    """last group: gain of a channel drawn from 1 - colour to 1 + colour"""
    label_noise: float = Field(default=0.0, ge=0, le=1)
    """share of a noisy client's labels that another replaces"""
    noisy_clients: float = Field(default=1.0, gt=0, le=1)
    """share of the clients that have label noise"""

    @property
    def shifts_features(self) -> bool:
        return bool(self.noise or self.rotation or self.colour)


def long_tail(data: Dataset, imbalance_factor: float, seed: int) -> Dataset:
    """The train set with floor(n_max * imbalance_factor ** (-c / (C - 1))) random samples of class c.

    At least one of each, and never more than there are; n_max is the size of the largest class.
    """
    if imbalance_factor == 1:
        return data
    _check_classes(data, "imbalance_factor", imbalance_factor)
    sizes = np.bincount(data.y_train, minlength=data.num_classes)
    profile = imbalance_factor ** (-np.arange(data.num_classes) / (data.num_classes - 1))
    wanted = np.floor(sizes.max() * profile + 1e-9).astype(np.int64)  # 50 must not become 49.999...
    ordered = by_class(data.y_train, generator(seed, "long_tail"))
    rank = np.arange(len(ordered)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.sort(ordered[rank < np.repeat(np.maximum(wanted, 1), sizes)])
    return replace(
        data,
        x_train=data.x_train[kept],
        y_train=data.y_train[kept],
        group_train=None if data.group_train is None else data.group_train[kept],
    )


def shift(data: Dataset, partition: Partition, options: Heterogeneity, seed: int) -> Dataset:
    """The training data as their clients see them. Raises ConfigError if they cannot be shifted so."""
    if options.shifts_features:
        data = replace(data, x_train=_shifted_features(data, partition, options, seed))
    if options.label_noise:
        _check_classes(data, "label_noise", options.label_noise)
        data = replace(data, y_train=_noisy_labels(data, partition, options, seed))
    return data


def _check_classes(data: Dataset, key: str, value: float) -> None:
    if data.kind != "classes":
        raise ConfigError(
            f"works on classes, and the samples of {data.name!r} have {data.kind} to predict; leave it out",
            key=f"heterogeneity.{key}",
            value=value,
        )


def _shifted_features(
    data: Dataset, partition: Partition, options: Heterogeneity, seed: int
) -> np.ndarray:
    clients = len(partition.sizes)
    groups = _client_groups(data, clients, options)
    rng = generator(seed, "feature_shift")
    gains = 1 + options.colour * rng.uniform(-1, 1, (groups, data.x_train.shape[-1]))  # at level 1
    group_of = np.arange(clients) * groups // clients
    x = data.x_train.copy()
    # Many clients at once, but one by one where their images turn.
    at_once = 1 if options.rotation else max(1, _SHIFTED * clients // len(partition.indices))
    for first in range(int(np.argmax(group_of > 0)), clients, at_once):
        some = slice(first, min(first + at_once, clients))
        samples = partition.indices[partition.offsets[some.start] : partition.offsets[some.stop]]
        # In this order, so that 270 * 1 / 3 is exactly 90.
        degrees = options.rotation * int(group_of[first]) / (groups - 1)
        turned = _rotated(x[samples], degrees)
        if not (options.noise or options.colour):
            x[samples] = turned
            continue
        group = np.repeat(group_of[some], partition.sizes_of(np.arange(some.start, some.stop)))
        group = group.reshape(-1, *[1] * (x.ndim - 1))  # of each sample
        level = group / (groups - 1)
        gain = gains[group[..., 0]]
        values = turned * (1 + level * (gain - 1)).astype(np.float32)
        if options.noise:
            noise = (level * options.noise).astype(np.float32)
            scale = noise * data.std * (255 if x.dtype == np.uint8 else 1)
            values += scale * rng.standard_normal(values.shape, np.float32)
        if x.dtype == np.uint8:
            np.rint(values, out=values).clip(0, 255, out=values)
        x[samples] = values
    return x


def _client_groups(data: Dataset, clients: int, options: Heterogeneity) -> int:
    samples = f"the samples of {data.name!r} are"
    for name in ("noise", "rotation", "colour"):
        value = getattr(options, name)
        refuse = partial(ConfigError, key=f"heterogeneity.{name}", value=value)
        if value and data.has_tokens:
            raise refuse(f"features shift, but {samples} integer tokens, which cannot; set it to 0")
        if value and name != "noise" and len(data.sample_shape) != 3:
            raise refuse(
                f"works on images, but {samples} vectors of {data.sample_shape[0]} features; "
                "set it to 0"
            )
    groups = options.client_groups or clients
    if groups > clients:
        raise ConfigError(
            f"must be at most federation.clients = {clients}",
            key="heterogeneity.client_groups",
            value=groups,
            keys=("federation.clients",),
        )
    if groups < 2:
        raise ConfigError(
            "a feature shift (heterogeneity.noise, rotation or colour) grows from "
            "client to client and leaves the first as it is; it needs 2 clients or more",
            key="federation.clients",
            value=1,
            keys=("heterogeneity.noise",),
        )
    return groups


def _rotated(x: np.ndarray, degrees: float) -> np.ndarray:
    """Images [m, H, W, channels] turned to the left about their middle; what turns in is black (0)."""
    if degrees % 360 == 0:
        return x
    if degrees % 180 == 0 or (degrees % 90 == 0 and x.shape[1] == x.shape[2]):
        return np.rot90(x, int(degrees // 90), axes=(1, 2))  # no pixel is lost or mixed
    import torch  # slow to import
    from torchvision.transforms import InterpolationMode, functional

    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    turned = functional.rotate(images, degrees, InterpolationMode.BILINEAR)
    return turned.permute(0, 2, 3, 1).numpy()


def _noisy_labels(
    data: Dataset, partition: Partition, options: Heterogeneity, seed: int
) -> np.ndarray:
    """Symmetric noise: a replaced label becomes each of the other C - 1 with equal probability."""
    clients = len(partition.sizes)
    rng = generator(seed, "label_noise")
    y = data.y_train.copy()
    for client in rng.permutation(clients)[: max(1, round(options.noisy_clients * clients))]:
        samples = partition.client(client)
        # Rounded up or down at random, so that the share is right on average at small clients too.
        count = int(options.label_noise * len(samples) + rng.random())
        if not count:
            continue
        replaced = rng.choice(samples, count, replace=False)
        y[replaced] += rng.integers(1, data.num_classes, count)
        y[replaced] %= data.num_classes
    return y
