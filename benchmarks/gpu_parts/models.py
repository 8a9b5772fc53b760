"""Models that the registry does not have; `model.name=benchmarks.gpu_parts.models:NAME`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dropout_net(num_classes: int) -> nn.Module:
    """A convolution with group normalisation, and dropout: each step draws random numbers."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.GroupNorm(2, 16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64, num_classes),
    )


class SmallViT(nn.Module):
    """A vision transformer of two layers on patches of 4 x 4 pixels: `[n, 3, H, W] -> [n, num_classes]`."""

    def __init__(self, num_classes: int, width: int = 64, heads: int = 4, patches: int = 16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.place = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.layers = nn.Sequential(AttentionBlock(width, heads), AttentionBlock(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(tokens)).mean(1))


class AttentionBlock(nn.Module):
    """Attention and a perceptron, each after a normalisation and added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))
