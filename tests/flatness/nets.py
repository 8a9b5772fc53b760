"""Small networks as objectives in float64, whose derivatives an independent program can check."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from rayfl.data.datasets import Dataset
from rayfl.training.batches import DeviceData
from rayfl.training.function import Shortcuts
from rayfl.training.objective import SampleObjective


def a_dataset(shape, n=40, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, *shape)).astype(np.float32)
    y = rng.integers(0, classes, n)
    channels = shape[-1]
    return Dataset(
        name="random",
        x_train=x,
        y_train=y,
        x_test=x[:10],
        y_test=y[:10],
        mean=np.zeros(channels, np.float32),
        std=np.ones(channels, np.float32),
        classes=tuple(map(str, range(classes))),
    )


def objective_of(model, data, dtype=torch.double):
    """The mean loss of the model, in this dtype, on all training samples."""
    model = model.to(dtype)
    function = Shortcuts(channels_last=True).function(model)
    w = torch.empty(function.layout.size, dtype=dtype)
    for info in function.layout.parameters:
        info.view(w).copy_(dict(model.named_parameters())[info.name].detach())
    samples = torch.arange(len(data.y_train))
    device_data = DeviceData(data, "train", torch.device("cpu"))
    return SampleObjective(function, device_data, samples, w, torch.zeros(0, dtype=dtype))


def small_objective(dtype=torch.double):
    """A network of 4 x 8 x 4 with ReLUs, P = 116, and the places of its tensors."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    objective = objective_of(model, a_dataset((6,)), dtype)
    return objective, tuple(objective.function.layout.parameters)


def rescaled(objective, tensors, factor):
    """The same function with the first layer `factor` times as large, and the last so much smaller."""
    w = objective.w.clone()
    for info, scale in zip(tensors, (factor, factor, 1 / factor, 1.0), strict=True):
        info.view(w).mul_(scale)
    return replace(objective, w=w)
