"""Common parts of image models: the check of their input, and the size that they see it in."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from rayfl.errors import ConfigError


def check_images(name: str, sample_shape: tuple[int, ...], smallest: int = 1) -> None:
    """ConfigError unless the samples are images `[C, H, W]` of at least `smallest` x `smallest`."""
    if len(sample_shape) != 3 or min(sample_shape[1:]) < smallest:
        size = f" of {smallest} x {smallest} pixels or more" if smallest > 1 else ""
        has = list(sample_shape)
        raise ConfigError(
            f"needs images [C, H, W]{size}, the data have {has}; use model.name=mlp",
            key="model.name",
            value=name,
        )


def channels_in(layer: nn.Module, channels: int) -> nn.Conv2d:
    """A fresh convolution like `layer`, for images of that many channels."""
    assert isinstance(layer, nn.Conv2d)
    (height, width), (down, right) = layer.kernel_size, layer.stride
    size, stride, biased = (height, width), (down, right), layer.bias is not None
    fresh = nn.Conv2d(channels, layer.out_channels, size, stride, bias=biased)
    nn.init.trunc_normal_(fresh.weight, std=(channels * height * width) ** -0.5)
    if fresh.bias is not None:
        nn.init.zeros_(fresh.bias)
    return fresh


@dataclass(frozen=True)
class Resize:
    """Hook that shows a model its images in `size` x `size` pixels; its parameters keep their names."""

    size: int

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        (images,) = inputs
        if images.shape[-2:] == (self.size, self.size):
            return None
        size = (self.size, self.size)
        return (F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True),)


def resized(model: nn.Module, size: int | None) -> nn.Module:
    """`model`, shown its images in that size; None: as they are."""
    if size is not None:
        model.register_forward_pre_hook(Resize(size))
    return model
