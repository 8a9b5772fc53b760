"""Vision transformers, those of torchvision.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929; Touvron et al.,
"Training data-efficient image transformers", ICML 2021, arXiv:2012.12877 (the tiny one, here with half
of its layers and patches of 4 x 4 pixels, as in FedNSAM's code); Liu et al., "Swin Transformer",
ICCV 2021, arXiv:2103.14030. Heads of ViTs start at zero, as torchvision's do.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from rayfl.errors import ConfigError
from rayfl.models.images import channels_in, check_images, resized
from rayfl.models.lora import LoRA
from rayfl.models.pretrained import Pretrainable

_Size = Annotated[
    int, Field(ge=1, description="pixels that images are resized to inside the model")
]


@dataclass(frozen=True, kw_only=True)
class Transformer(Pretrainable):
    """Base of transformers: adapters instead of training all weights."""

    head: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]

    lora: Annotated[
        LoRA | None,
        Field(
            description="train low-rank adapters and the head, freeze the rest; {}: with the defaults"
        ),
    ] = None

    def _finished(self, model: nn.Module, image_size: int) -> nn.Module:
        """With its weights, its adapters and its image size."""
        self.load_pretrained(model, self.head)
        if self.lora is not None:
            self.lora.add(model, [self.head], self.lora_targets)
        return resized(model, image_size)


@dataclass(frozen=True, kw_only=True)
class ViT(Transformer):
    """The options of vision transformers."""

    patch: ClassVar[int]
    layers: ClassVar[int]
    heads: ClassVar[int]
    width: ClassVar[int]
    head = "heads.head"
    lora_targets = ("qkv", "proj")

    image_size: _Size

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        from torchvision.models import VisionTransformer  # slow to import

        check_images(self.name, sample_shape)
        if self.image_size % self.patch:
            raise ConfigError(
                f"must be a multiple of {self.patch}, the patch size of '{self.name}'",
                key="model.image_size",
                value=self.image_size,
            )
        model = VisionTransformer(
            image_size=self.image_size,
            patch_size=self.patch,
            num_layers=self.layers,
            num_heads=self.heads,
            hidden_dim=self.width,
            mlp_dim=4 * self.width,
            num_classes=num_classes,
        )
        if sample_shape[0] != 3:
            model.conv_proj = channels_in(model.conv_proj, sample_shape[0])
        return self._finished(model, self.image_size)


@dataclass(frozen=True, kw_only=True)
class ViTTiny(ViT):
    """DeiT-tiny with 6 layers and patches of 4 x 4: 2.7 million parameters, for 32 x 32 pixels."""

    name = "vit_tiny"
    patch, layers, heads, width = 4, 6, 3, 192

    image_size: _Size = 32


@dataclass(frozen=True, kw_only=True)
class ViTB16(ViT):
    """ViT-B/16: 86 million parameters, for 224 x 224 pixels."""

    name = published = "vit_b_16"
    patch, layers, heads, width = 16, 12, 12, 768

    image_size: _Size = 224


@dataclass(frozen=True, kw_only=True)
class Swin(Transformer):
    """The options of Swin transformers."""

    layers: ClassVar[tuple[int, int, int, int]]
    heads: ClassVar[tuple[int, int, int, int]] = (3, 6, 12, 24)
    width: ClassVar[int] = 96
    depth_drop: ClassVar[float]
    head = "head"
    # torchvision's window attention reads the weights of its layers and never calls them, so only the
    # layers of the MLPs can carry adapters.
    lora_targets = ("mlp.0", "mlp.3")

    image_size: _Size = 224

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        from torchvision.models import SwinTransformer  # slow to import

        check_images(self.name, sample_shape)
        model = SwinTransformer(
            patch_size=[4, 4],
            embed_dim=self.width,
            depths=list(self.layers),
            num_heads=list(self.heads),
            window_size=[7, 7],
            stochastic_depth_prob=self.depth_drop,
            num_classes=num_classes,
        )
        if sample_shape[0] != 3:
            first = channels_in(model.get_submodule("features.0.0"), sample_shape[0])
            model.set_submodule("features.0.0", first)
        return self._finished(model, self.image_size)


@dataclass(frozen=True, kw_only=True)
class SwinT(Swin):
    """Swin-T: 28 million parameters, for 224 x 224 pixels."""

    name = published = "swin_t"
    layers, depth_drop = (2, 2, 6, 2), 0.2


@dataclass(frozen=True, kw_only=True)
class SwinS(Swin):
    """Swin-S: 49 million parameters, for 224 x 224 pixels."""

    name = published = "swin_s"
    layers, depth_drop = (2, 2, 18, 2), 0.3


@dataclass(frozen=True, kw_only=True)
class SwinB(Swin):
    """Swin-B: 87 million parameters, for 224 x 224 pixels."""

    name = published = "swin_b"
    layers, depth_drop = (2, 2, 18, 2), 0.5
    heads, width = (4, 8, 16, 32), 128
