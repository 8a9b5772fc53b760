"""A model of the tests' own, named in configs by its import path."""

from torch import nn


def build(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, num_classes),
    )
