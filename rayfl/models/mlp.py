"""Multi-layer perceptron."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import nn

from rayfl.models.base import Model


@dataclass(frozen=True, kw_only=True)
class MLP(Model):
    """Fully connected layers with ReLU between them, on features or flattened images."""

    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="widths of the hidden layers; [] = logistic regression"),
    ] = (200, 200)

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        widths = (math.prod(sample_shape), *self.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
