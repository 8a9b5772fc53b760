"""Residual networks with group or batch normalisation.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; GroupNorm
because batch statistics differ between non-IID clients: Hsieh et al., "The Non-IID Data Quagmire
of Decentralized Machine Learning", ICML 2020, arXiv:1910.00189. Two groups, as in FedWMSAM's code.
Batch statistics are the clients' mean after each round, as in FedNSAM's code; no algorithm moves them.

Names, shapes and start of all weights are torchvision's. Its own classes would make every client actor
import it, which takes two seconds and 170 MB of memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

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
        check_images(self.name, sample_shape)
        norm = nn.BatchNorm2d if self.norm == "batch" else partial(nn.GroupNorm, self.groups)
        block = Bottleneck if self.bottleneck else BasicBlock
        small = self.stem == "cifar"
        model = Network(block, self.blocks, sample_shape[0], num_classes, norm, small)
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


Norm = Callable[[int], nn.Module]
"""Makes the normalisation of a number of channels."""


class Block(nn.Module):
    """A residual block: what its convolutions make of x `[n, C, H, W]`, added to x or its projection."""

    expansion: ClassVar[int]
    """Channels that come out, over `width`."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm):
        super().__init__()
        self._convolve(channels, width, stride, norm)
        self.relu = nn.ReLU(inplace=True)
        out = width * self.expansion
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            projection = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, norm(out))

    def _convolve(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        """Make conv1, bn1, conv2, bn2, ..."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _added(self, residual: Tensor, x: Tensor) -> Tensor:
        residual += x if self.downsample is None else self.downsample(x)
        return self.relu(residual)


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def _convolve(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        return self._added(self.bn2(self.conv2(residual)), x)


class Bottleneck(Block):
    """A 1x1, a 3x3 and a 1x1 convolution; the stride is the 3x3's, as in torchvision."""

    expansion = 4

    def _convolve(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = norm(width * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        return self._added(self.bn3(self.conv3(residual)), x)


class Network(nn.Module):
    """Images `[n, C, H, W]` -> logits `[n, num_classes]`."""

    def __init__(
        self,
        block: type[Block],
        blocks: tuple[int, int, int, int],
        channels: int,
        num_classes: int,
        norm: Norm,
        small_stem: bool,
    ):
        super().__init__()
        size, stride = (3, 1) if small_stem else (7, 2)
        self.conv1 = nn.Conv2d(channels, 64, size, stride, padding=size // 2, bias=False)
        self.bn1 = norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = [], 64
        for stage, count in enumerate(blocks):
            width, made = 64 << stage, []
            for i in range(count):
                made.append(block(channels, width, 2 if stage > 0 and i == 0 else 1, norm))
                channels = width * block.expansion
            stages.append(nn.Sequential(*made))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))
