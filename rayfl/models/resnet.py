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
        model = Network(
            *(sample_shape[0], num_classes, self.blocks, self.bottleneck),
            norm=norm,
            small_stem=self.stem == "cifar",
        )
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


Norm = Callable[[int], nn.Module]  # makes the normalisation of a number of channels


class Block(nn.Module):
    """Two or three convolutions of x `[n, C, H, W]`, added to x or to a projection of it."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool, norm: Norm):
        super().__init__()
        two, three = [(width, 3), (width, 3)], [(width, 1), (width, 3), (4 * width, 1)]
        layers = three if bottleneck else two
        strided = 1 if bottleneck else 0  # the first 3x3, as in torchvision
        before = channels
        for i, (after, size) in enumerate(layers):
            step = stride if i == strided else 1
            convolution = nn.Conv2d(before, after, size, step, padding=size // 2, bias=False)
            self.add_module(f"conv{i + 1}", convolution)
            self.add_module(f"bn{i + 1}", norm(after))
            before = after
        self.depth, self.channels = len(layers), before
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != before:
            projection = nn.Conv2d(channels, before, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, norm(before))

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        for i in range(1, self.depth + 1):
            residual = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(residual))
            if i < self.depth:
                residual = self.relu(residual)
        residual += x if self.downsample is None else self.downsample(x)
        return self.relu(residual)


class Network(nn.Module):
    """Images `[n, C, H, W]` -> logits `[n, num_classes]`."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        blocks: tuple[int, int, int, int],
        bottleneck: bool,
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
                stride = 2 if stage > 0 and i == 0 else 1
                made.append(Block(channels, width, stride, bottleneck, norm))
                channels = made[-1].channels
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
