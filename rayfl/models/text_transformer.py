"""A small transformer for tokens.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762; with learned positions and GELU,
and normalisation in front of each part, as GPT-2 has them. No dropout unless it is asked for.

Shapes: B samples, L tokens.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rayfl.errors import ConfigError
from rayfl.models.tokens import Padding, TokenModel, Tokens, counted_tokens, mean_of


@dataclass(frozen=True, kw_only=True)
class TextTransformer(TokenModel):
    """Causal for tokens to predict at each position; else the mean over the text, for its class."""

    width: Annotated[int, Field(ge=1, description="width of a token's features")] = 64
    layers: Annotated[int, Field(ge=1, description="layers on top of each other")] = 2
    heads: Annotated[int, Field(ge=1, description="attention heads; width is a multiple")] = 4
    dropout: Annotated[float, Field(ge=0, lt=1, description="in training, as in the paper")] = 0.0
    padding: Padding = None

    def __post_init__(self):
        if self.width % self.heads:
            raise ConfigError(
                key="model.width",
                value=self.width,
                allowed=f"a multiple of model.heads = {self.heads}",
                keys=("model.heads",),
            )

    def build_on(self, tokens: Tokens, num_classes: int) -> nn.Module:
        return _Network(self, tokens, num_classes)


class _Network(nn.Module):
    def __init__(self, options: TextTransformer, tokens: Tokens, num_classes: int):
        super().__init__()
        width = options.width
        self.each, self.padding = tokens.each, options.padding
        self.embedding = nn.Embedding(tokens.vocabulary, width)
        self.positions = nn.Parameter(torch.randn(tokens.length, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                *(width, options.heads, 4 * width, options.dropout, "gelu"),
                batch_first=True,
                norm_first=True,
            )
            for _ in range(options.layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, L]` to `[B, L, classes]` for each token, or to `[B, classes]`."""
        counted = counted_tokens(tokens, self.padding)
        features = self.embedding(tokens) + self.positions
        mask = later = None
        if self.each:
            later = torch.ones(tokens.shape[-1:] * 2, dtype=torch.bool, device=tokens.device).triu(
                1
            )
        elif counted is not None:
            mask = ~counted & counted.any(
                1, keepdim=True
            )  # an empty text sees all of it, not nothing
        for layer in self.layers:
            features = layer(features, later, mask, is_causal=self.each)
        features = self.norm(features)
        return self.head(features if self.each else mean_of(features, counted))
