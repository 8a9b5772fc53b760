"""Residual networks with group or batch normalisation.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; GroupNorm
because batch statistics differ between non-IID clients: Hsieh et al., "The Non-IID Data Quagmire
of Decentralized Machine Learning", ICML 2020, arXiv:1910.00189. Two groups, as in FedWMSAM's code.
Batch statistics are the clients' mean after each round, as in FedNSAM's code; no algorithm moves them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from rayfl.models.images import check_images, resized
from rayfl.models.pretrained import Pretrainable


@dataclass(frozen=True, kw_only=True)
class ResNet(Pretrainable):
    """The options of residual networks."""

    blocks: ClassVar[tuple[int, int, int, int]]
    bottleneck: ClassVar[bool] = False

    stem: Annotated[
        Literal["torchvision", "cifar"],
        Field(
            description="torchvision: 7x7 convolution of stride 2 and max-pool, as FedWMSAM's code "
            "uses even on 32x32; cifar: 3x3 convolution of stride 1, more accurate there"
        ),
    ] = "torchvision"
    norm: Annotated[
        Literal["group", "batch"],
        Field(description="normalisation; batch: its running statistics travel and are averaged"),
    ] = "group"
    groups: Annotated[
        Literal[1, 2, 4, 8, 16, 32, 64], Field(description="groups of each GroupNorm")
    ] = 2
    image_size: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="pixels that images are resized to inside the model; null: as they are"),
    ] = None

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        from torchvision.models import resnet  # slow to import

        check_images(self.name, sample_shape)
        norm = nn.BatchNorm2d if self.norm == "batch" else partial(nn.GroupNorm, self.groups)
        block = resnet.Bottleneck if self.bottleneck else resnet.BasicBlock
        model = resnet.ResNet(block, list(self.blocks), num_classes, norm_layer=norm)
        if self.stem == "cifar":
            model.conv1 = nn.Conv2d(sample_shape[0], 64, 3, padding=1, bias=False)
            model.set_submodule("maxpool", nn.Identity())
        else:
            model.conv1 = nn.Conv2d(sample_shape[0], 64, 7, stride=2, padding=3, bias=False)
        # The new convolution starts the way torchvision starts all others.
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.load_pretrained(model, head="fc")
        return resized(model, self.image_size)


@dataclass(frozen=True, kw_only=True)
class ResNet18(ResNet):
    """ResNet-18: 11.2 million parameters."""

    name = published = "resnet18"
    blocks = (2, 2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class ResNet34(ResNet):
    """ResNet-34: 21.3 million parameters."""

    name = published = "resnet34"
    blocks = (3, 4, 6, 3)


@dataclass(frozen=True, kw_only=True)
class ResNet50(ResNet):
    """ResNet-50: 23.5 million parameters."""

    name = published = "resnet50"
    blocks = (3, 4, 6, 3)
    bottleneck = True
