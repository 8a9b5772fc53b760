"""Common parts of models whose samples are tokens.

Shapes: B samples, L tokens.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from rayfl.errors import ConfigError
from rayfl.models.base import Model

Padding = Annotated[
    int | None,
    Field(ge=0, description="token that fills up short texts and does not count; null: none"),
]


class Tokens(NamedTuple):
    """Samples that are tokens, `[n, L]`."""

    vocabulary: int  # they are from 0 to vocabulary - 1
    length: int  # L
    each: bool  # True: an output at each position; False: one for the sample


@dataclass(frozen=True, kw_only=True)
class TokenModel(Model):
    """Base of the options of models whose samples are tokens."""

    @abstractmethod
    def build_on(self, tokens: Tokens, num_classes: int) -> nn.Module:
        """A freshly initialised model: `[n, L] -> [n, num_classes]`, or `[n, L, num_classes]` for each."""

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        from rayfl.models import name_of  # which knows this module's models

        raise ConfigError(
            f"takes integer tokens, and the samples {list(sample_shape)} are none; take another model",
            key="model.name",
            value=name_of(self),
        )


def counted_tokens(tokens: Tensor, padding: int | None) -> Tensor | None:
    """True for the tokens `[B, L]` that are no padding; None: all of them."""
    return None if padding is None else tokens != padding


def mean_of(features: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of `[B, L, width]` over the tokens that count, `[B, width]`."""
    if counted is None:
        return features.mean(1)
    weights = counted.to(features.dtype).unsqueeze(-1)
    return (features * weights).sum(1) / weights.sum(1).clamp(min=1)
