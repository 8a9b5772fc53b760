"""A Swin transformer of the tests' own: the registered ones take seconds to initialise."""

from dataclasses import dataclass

from rayfl.models.transformer import Swin


@dataclass(frozen=True, kw_only=True)
class SmallSwin(Swin):
    """Two blocks in each of four stages, at 32 x 32 pixels."""

    name = "small_swin"
    layers, heads, width, depth_drop = (2, 2, 2, 2), (1, 2, 4, 8), 16, 0.1

    image_size: int = 32
