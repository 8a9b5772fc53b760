"""ResNet-18 with group normalisation instead of batch normalisation.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; GroupNorm
because batch statistics differ between non-IID clients: Hsieh et al., "The Non-IID Data Quagmire
of Decentralized Machine Learning", ICML 2020, arXiv:1910.00189. Two groups, as in FedWMSAM's code.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from rayfl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ResNet18:
    """ResNet-18-GN: 11.2 million parameters."""

    stem: Annotated[
        Literal["torchvision", "cifar"],
        Field(
            description="torchvision: 7x7 convolution of stride 2 and max-pool, as FedWMSAM's code "
            "uses even on 32x32; cifar: 3x3 convolution of stride 1, more accurate there"
        ),
    ] = "torchvision"
    groups: Annotated[
        Literal[1, 2, 4, 8, 16, 32, 64], Field(description="groups of each GroupNorm")
    ] = 2

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        from torchvision.models.resnet import BasicBlock, ResNet  # slow to import

        if len(sample_shape) != 3:
            raise ConfigError(
                "model.name = 'resnet18': needs images [C, H, W], the data have "
                f"{list(sample_shape)}; use model.name=mlp"
            )
        norm = partial(nn.GroupNorm, self.groups)
        model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes, norm_layer=norm)
        if self.stem == "cifar":
            model.conv1 = nn.Conv2d(sample_shape[0], 64, 3, padding=1, bias=False)
            model.set_submodule("maxpool", nn.Identity())
        else:
            model.conv1 = nn.Conv2d(sample_shape[0], 64, 7, stride=2, padding=3, bias=False)
        # The new convolution starts the way torchvision starts all others.
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        return model
