"""The wide LeNet-5 of the federated-learning literature: 797,962 parameters on CIFAR-10.

Its code comes with FedWMSAM, FedNSAM and many before them: two 5x5 convolutions with 64 channels,
then layers of 384 and 192. It is not LeCun's LeNet-5, only named after it. Deviation: none.
"""

from dataclasses import dataclass

from torch import nn

from rayfl.models.images import check_images

_SMALLEST = 16  # below, the second pooling leaves nothing


@dataclass(frozen=True, kw_only=True)
class LeNet5:
    """Two convolutions and three linear layers, for images of 16 x 16 pixels or more."""

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        check_images("lenet5", sample_shape, _SMALLEST)
        channels, height, width = sample_shape
        return nn.Sequential(
            nn.Conv2d(channels, 64, 5),
            # ReLU is monotone, so pooling before it gives the same values with a quarter of the
            # work in the ReLU.
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * _pooled(height) * _pooled(width), 384),
            nn.ReLU(),
            nn.Linear(384, 192),
            nn.ReLU(),
            nn.Linear(192, num_classes),
        )


def _pooled(side: int) -> int:
    """Side of the map after two rounds of 5x5 convolution without padding and 2x2 pooling."""
    for _ in range(2):
        side = (side - 4) // 2
    return side
