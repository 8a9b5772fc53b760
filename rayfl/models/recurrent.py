"""Recurrent networks for tokens: an embedding, LSTM or GRU layers, and a linear layer.

Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 1997; Cho et al., EMNLP 2014,
arXiv:1406.1078 (GRU). LEAF's model for Shakespeare (Caldas et al., 2018, arXiv:1812.01097) is an LSTM with
embedding=8, hidden=256 and layers=2; the defaults here are for one CPU core.

Shapes: B samples, L tokens, H hidden units.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rayfl.models.tokens import Padding, TokenModel, Tokens, counted_tokens, mean_of


@dataclass(frozen=True, kw_only=True)
class Recurrent(TokenModel):
    """The options of recurrent networks."""

    cells: ClassVar[type[nn.LSTM] | type[nn.GRU]]

    embedding: Annotated[int, Field(ge=1, description="width of the embedding of a token")] = 16
    hidden: Annotated[int, Field(ge=1, description="units of a layer")] = 128
    layers: Annotated[int, Field(ge=1, description="layers on top of each other")] = 1
    padding: Padding = None

    def build_on(self, tokens: Tokens, num_classes: int) -> nn.Module:
        return _Network(
            nn.Embedding(tokens.vocabulary, self.embedding),
            self.cells(self.embedding, self.hidden, self.layers, batch_first=True),
            nn.Linear(self.hidden, num_classes),
            tokens.each,
            self.padding,
        )


@dataclass(frozen=True, kw_only=True)
class LSTM(Recurrent):
    """An embedding, LSTM layers and a linear layer, for tokens; the mean over the text for its class."""

    cells = nn.LSTM


@dataclass(frozen=True, kw_only=True)
class GRU(Recurrent):
    """An embedding, GRU layers and a linear layer, for tokens; the mean over the text for its class."""

    cells = nn.GRU


class _Network(nn.Module):
    def __init__(
        self,
        embedding: nn.Embedding,
        recurrent: nn.LSTM | nn.GRU,
        head: nn.Linear,
        each: bool,
        padding: int | None,
    ):
        super().__init__()
        self.embedding, self.recurrent, self.head = embedding, recurrent, head
        self.each, self.padding = each, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, L]` to `[B, L, classes]` for each token, or to `[B, classes]`."""
        # cuDNN's cells need weights in memory of their own, not views of a flat vector, and have neither
        # gradients in evaluation mode nor second derivatives.
        with torch.backends.cudnn.flags(enabled=False):
            features, _ = self.recurrent(self.embedding(tokens))  # [B, L, H]
        if not self.each:
            features = mean_of(features, counted_tokens(tokens, self.padding))
        return self.head(features)
