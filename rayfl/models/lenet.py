"""The two LeNet-5 of the federated-learning literature.

The wide one has 797,962 parameters on CIFAR-10. Its code comes with FedWMSAM, FedNSAM and many before them:
two 5x5 convolutions with 64 channels, then layers of 384 and 192. It is not LeCun's LeNet-5, only named after
it. The small one has LeCun's sizes (Proc. IEEE 1998), 6 and 16 channels and layers of 120 and 84: 62,006
parameters. It is the "simple CNN" of Li et al., "Federated Learning on Non-IID Data Silos", ICDE 2022, and
trains ten times as fast. Deviation: none from the code of these papers.
"""

from dataclasses import dataclass

from torch import nn

from rayfl.models.base import Model
from rayfl.models.images import check_images

_SMALLEST = 16  # below, the second pooling leaves nothing


@dataclass(frozen=True, kw_only=True)
class LeNet5(Model):
    """Two convolutions and three linear layers, for images of 16 x 16 pixels or more."""

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        check_images("lenet5", sample_shape, _SMALLEST)
        return _network(sample_shape, (64, 64), (384, 192), num_classes)


@dataclass(frozen=True, kw_only=True)
class LeNet5Small(Model):
    """The same layers with LeCun's sizes, for images of 16 x 16 pixels or more."""

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        check_images("lenet5_small", sample_shape, _SMALLEST)
        return _network(sample_shape, (6, 16), (120, 84), num_classes)


def _network(
    sample_shape: tuple[int, ...], maps: tuple[int, int], widths: tuple[int, int], num_classes: int
) -> nn.Module:
    channels, height, width = sample_shape
    return nn.Sequential(
        nn.Conv2d(channels, maps[0], 5),
        # ReLU is monotone, so pooling before it gives the same values with a quarter of the
        # work in the ReLU.
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(maps[0], maps[1], 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(maps[1] * _pooled(height) * _pooled(width), widths[0]),
        nn.ReLU(),
        nn.Linear(widths[0], widths[1]),
        nn.ReLU(),
        nn.Linear(widths[1], num_classes),
    )


def _pooled(side: int) -> int:
    """Side of the map after two rounds of 5x5 convolution without padding and 2x2 pooling."""
    for _ in range(2):
        side = (side - 4) // 2
    return side
