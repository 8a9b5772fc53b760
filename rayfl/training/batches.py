"""Minibatches as whole-tensor operations: which samples each local step sees, and how they look.

Shapes: C clients of a stack, K steps, B samples of a batch, n samples of the dataset.

Stragglers with a random amount of work are those of FedProx, Li et al., "Federated Optimization in
Heterogeneous Networks", MLSys 2020, arXiv:1812.06127, section 5.2 (there in epochs).
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rayfl import seeds
from rayfl.data.datasets import Dataset

# Samples are made ready for as many local steps at once as fit in here as float32: a processor's cache,
# and a small part of a GPU's memory, where every launch of a kernel counts.
FETCHED_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


class BatchSchedule(NamedTuple):
    """The minibatches of one client's round; drawn on the CPU, equal on every device."""

    indices: np.ndarray  # samples of each step, int64 `[K, B]`; entries past `sizes[k]` are 0
    sizes: np.ndarray  # true batch size of each step, int64 `[K]`
    flips: np.ndarray | None  # samples that are mirrored, bool `[K, B]`
    # Rows and columns by which the crop moves, int64 `[K, B, 2]`, from 0 to twice the padding.
    shifts: np.ndarray | None


class Minibatch(NamedTuple):
    """One local step's samples of C clients."""

    # `[C, B, *sample_shape]`, normalised; images are channels-last in memory; tokens are int64.
    inputs: Tensor
    targets: Tensor  # int64 `[C, B]`
    # `[C, B]`, 1/size for a client's samples and 0 for padding; None: no padding, mean over B.
    weights: Tensor | None

    def first(self, samples: int | None) -> "Minibatch":
        """Its first so many samples, or all if it has fewer; None: all."""
        if samples is None or samples >= self.targets.shape[1]:
            return self
        weights = self.weights
        if weights is not None:
            weights = weights[:, :samples]
            weights = weights / weights.sum(-1, keepdim=True)
        return Minibatch(self.inputs[:, :samples], self.targets[:, :samples], weights)


def steps_per_round(
    samples: int, batch_size: int, local_epochs: int | None, local_steps: int | None
) -> int:
    """K_i of a client with this many samples: `local_steps`, or whole epochs with a smaller last batch."""
    if local_steps is not None:
        return local_steps
    assert local_epochs is not None
    return local_epochs * math.ceil(samples / batch_size)


def batch_schedule(
    samples: np.ndarray,
    batch_size: int,
    steps: int,
    seed: int,
    round: int,
    client: int,
    augment: str,
    padding: int,
) -> BatchSchedule:
    """Draw a client's batches: reshuffled epochs over `samples`, the last batch smaller if need be."""
    n, width = len(samples), min(batch_size, len(samples))
    per_epoch = math.ceil(n / batch_size)
    rng = seeds.generator(seed, "batches", round, client)
    epochs = np.zeros((math.ceil(steps / per_epoch), per_epoch * width), dtype=np.int64)
    for epoch in epochs:
        epoch[:n] = samples[rng.permutation(n)]
    sizes = np.full((len(epochs), per_epoch), width)
    sizes[:, -1] = n - (per_epoch - 1) * width
    flips = shifts = None
    if augment != "none":
        rng = seeds.generator(seed, "augment", round, client)
        flips = rng.random((steps, width)) < 0.5
        if augment == "flip_crop":
            shifts = rng.integers(0, 2 * padding + 1, (steps, width, 2))
    return BatchSchedule(
        epochs.reshape(-1, width)[:steps], sizes.reshape(-1)[:steps], flips, shifts
    )


class DeviceData:
    """One split of a dataset on one device: uint8 stays uint8 and becomes float a batch at a time."""

    def __init__(self, dataset: Dataset, split: str, device: torch.device):
        x, y = {
            "train": (dataset.x_train, dataset.y_train),
            "test": (dataset.x_test, dataset.y_test),
        }[split]
        self.shape = x.shape[1:]  # (H, W, channels) or (F,)
        self.x = as_tensor(x.reshape(len(x), -1)).to(device)  # [n, D]
        self.y = as_tensor(y).to(device)
        self.padding = max(1, self.shape[0] // 8)
        # x / 255 and (x - mean) / std in one multiplication and one addition over whole rows.
        std = dataset.std * (255 if x.dtype == np.uint8 else 1)
        repeats = self.x.shape[1] // self.shape[-1]
        self.scale = torch.from_numpy(np.tile(1 / std, repeats).astype(np.float32)).to(device)
        self.shift = torch.from_numpy(
            np.tile(-dataset.mean / dataset.std, repeats).astype(np.float32)
        ).to(device)

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self, indices: Tensor) -> Tensor:
        """Normalised samples in storage order, `[m] -> [m, H, W, channels]` or `[m, F]`; tokens unchanged."""
        rows = self.x.index_select(0, indices)
        if rows.dtype == torch.int64:
            return rows
        rows = rows.to(torch.float32)
        return rows.mul_(self.scale).add_(self.shift).view(-1, *self.shape)

    def batches(self, schedules: list[BatchSchedule]) -> "StackBatches":
        """The minibatches of a stack of clients, by step."""
        return StackBatches(self, schedules)

    def preprocess(self, indices: Tensor, flips: Tensor | None, shifts: Tensor | None) -> Tensor:
        """Normalised and augmented samples, `[m] -> [m, *sample_shape]`."""
        inputs = self.inputs(indices)
        if flips is not None:
            inputs = self._augment(inputs, flips, shifts)
        return inputs.permute(0, 3, 1, 2) if len(self.shape) == 3 else inputs

    def _augment(self, images: Tensor, flips: Tensor, shifts: Tensor | None) -> Tensor:
        """Crop from the zero-padded normalised images, then mirror; `[m, H, W, channels]`."""
        m, height, width, channels = images.shape
        pad = self.padding if shifts is not None else 0
        rows = torch.arange(height, device=images.device).expand(m, -1)
        columns = torch.arange(width, device=images.device).expand(m, -1)
        columns = torch.where(flips[:, None], width - 1 - columns, columns)
        if shifts is not None:
            images = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
            rows, columns = rows + shifts[:, :1], columns + shifts[:, 1:]
        first = torch.arange(m, device=images.device)[:, None] * (height + 2 * pad)
        flat = ((first + rows) * (width + 2 * pad))[:, :, None] + columns[:, None, :]
        picked = images.reshape(-1, channels).index_select(0, flat.view(-1))
        return picked.view(m, height, width, channels)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array's memory, which may be read-only (the object store): do not write to it."""
    if not array.flags.writeable:
        # torch has no read-only tensors and warns; the store's arrays are never written to here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.from_numpy(array)
    return torch.from_numpy(array)


class StackBatches:
    """The minibatches of C clients: `batches(k)` is local step k's, for k from 0 upwards.

    Samples are fetched for several steps at once. A client that has finished repeats its last step.
    """

    def __init__(self, data: DeviceData, schedules: list[BatchSchedule]):
        self._data = data
        steps = max(len(p.sizes) for p in schedules)
        width = max(p.indices.shape[1] for p in schedules)
        self._sizes = np.stack(  # [C, K]
            [p.sizes[np.minimum(np.arange(steps), len(p.sizes) - 1)] for p in schedules]
        )
        self._indices = self._stack([p.indices for p in schedules], steps, width)  # [C, K, B]
        self._flips = self._drawn([p.flips for p in schedules], steps, width)
        self._shifts = self._drawn([p.shifts for p in schedules], steps, width)
        self._targets = data.y[self._indices]
        bytes_per_step = len(schedules) * width * data.x.shape[1] * max(4, data.x.element_size())
        self._at_once = max(1, FETCHED_BYTES[data.x.device.type] // bytes_per_step)
        self._fetched, self._inputs = range(0), torch.empty(0)

    def __call__(self, k: int) -> Minibatch:
        if k not in self._fetched:
            self._fetch(range(k, min(k + self._at_once, self._sizes.shape[1])))
        sizes = self._sizes[:, k]
        width = sizes.max()
        weights = None
        if sizes.min() < width:
            inside = np.arange(width) < sizes[:, None]
            weights = self._tensor(inside / sizes[:, None].astype(np.float32))
        inputs = self._inputs[:, k - self._fetched.start, :width]
        return Minibatch(inputs, self._targets[:, k, :width], weights)

    def _fetch(self, steps: range) -> None:
        part = slice(steps.start, steps.stop)
        indices = self._indices[:, part].flatten()
        flips = self._flips[:, part].flatten() if self._flips is not None else None
        shifts = self._shifts[:, part].flatten(0, 2) if self._shifts is not None else None
        inputs = self._data.preprocess(indices, flips, shifts)
        shape = (len(self._sizes), len(steps), -1)
        self._inputs = inputs.unflatten(0, shape)  # [C, steps, B, *sample_shape]
        self._fetched = steps

    def _drawn(self, values: list[np.ndarray | None], steps: int, width: int) -> Tensor | None:
        drawn = [v for v in values if v is not None]
        return self._stack(drawn, steps, width) if drawn else None

    def _stack(self, values: list[np.ndarray], steps: int, width: int) -> Tensor:
        """Stack the values of every client's schedule, `[C, K, B, ...]`."""
        padded = np.zeros((len(values), steps, width, *values[0].shape[2:]), values[0].dtype)
        for client, v in enumerate(values):
            padded[client, : len(v), : v.shape[1]] = v
            padded[client, len(v) :] = padded[client, len(v) - 1]
        return self._tensor(padded)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._data.x.device, non_blocking=True)


def client_steps(steps: int, straggler_prob: float, seed: int, round: int, client: int) -> int:
    """K_i, given the steps of a full round: a straggler gets only to a step from 1 to `steps`.

    A client is a straggler of a round with probability `straggler_prob`; any step is equally likely.
    """
    if not straggler_prob:
        return steps
    rng = seeds.generator(seed, "stragglers", round, client)
    return int(rng.integers(1, steps + 1)) if rng.random() < straggler_prob else steps
