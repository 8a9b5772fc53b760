"""VGG-11 without batch normalisation, with the small head of FedNSAM's code.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
arXiv:1409.1556, configuration A. The head is one hidden layer, as its users on 32x32 images have it.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from rayfl.models.images import check_images
from rayfl.models.pretrained import Pretrainable

_WIDTHS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # 0: max-pooling
_SMALLEST = 32  # below, five poolings leave nothing


@dataclass(frozen=True, kw_only=True)
class VGG11(Pretrainable):
    """VGG-11: 9.3 million parameters, for images of 32 x 32 pixels or more."""

    name = "vgg11"

    hidden: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="width of the hidden layer; null: 100 for up to 10 classes, else 256"),
    ] = None

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        check_images(self.name, sample_shape, _SMALLEST)
        layers: list[nn.Module] = []
        channels = sample_shape[0]
        for width in _WIDTHS:
            if width:
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                # The start of torchvision's VGGs: torch's default shrinks the signal in every layer.
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
                layers += [convolution, nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        hidden = self.hidden or (100 if num_classes <= 10 else 256)
        head = [nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)
        self.load_pretrained(model, head=str(len(model) - 1))
        return model
