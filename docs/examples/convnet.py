"""A small convolutional network, normalised over groups of channels: it has no statistics of batches.

Run it from the folder of this file:

    rayfl run quickstart model='{name: convnet:convnet, width: 8}'
"""

from torch import nn


def convnet(num_classes: int, width: int = 8) -> nn.Module:
    """Return a network for images of one channel, [n, 1, H, W] -> [n, num_classes]."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.GroupNorm(2, width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.GroupNorm(2, 2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 2 * width, num_classes),
    )
