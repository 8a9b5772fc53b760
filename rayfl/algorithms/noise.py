"""Seeded random numbers for algorithms: the `random` of the contexts in `base.py`.

Those of a client follow from (seed, round, client, step), the server's from (seed, round): where, beside
whom and after what it runs is no matter. Each row has a generator of its own, made when the first draw asks
for it, and all are drawn on the CPU, for the generators of a GPU give other numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rayfl import seeds

Fill = Callable[..., Tensor]
"""`fill(row, generator=g)` fills a vector in place and returns it, as `torch.Tensor.normal_` does."""


class Random(Protocol):
    """`ctx.random(like)`: standard normal numbers, a new tensor with the shape, dtype and device of `like`.

    `fill` draws others: `ctx.random(x, torch.Tensor.exponential_)`, or a function of your own such as
    `lambda row, generator: row.bernoulli_(0.1, generator=generator)`. It is called for each client's row.
    What a client gets depends on the experiment's seed, the round, the client and the step alone, never on
    who is beside it; the calls of one step draw one after the other. `like [n]` on a client is `[C, n]`.
    """

    def __call__(self, like: Tensor, fill: Fill = Tensor.normal_) -> Tensor: ...


def unseeded(like: Tensor, fill: Fill = Tensor.normal_) -> Tensor:
    """The `random` of a context that was made without a seed."""
    raise RuntimeError("this context has no random numbers: it was made without a seed")


@dataclass(eq=False)
class ClientNoise:
    """The draws of a stack's clients in one round."""

    seed: int
    round: int
    clients: Sequence[int]
    steps: Sequence[int]
    """K_i of each."""
    drawn: bool = field(default=False, init=False)
    """True once anything was drawn."""

    def at(self, step: int) -> Random:
        """Draws of local step `step`; of `upload` for a client that has taken all its steps."""
        generators: list[torch.Generator] = []

        def draw(like: Tensor, fill: Fill = Tensor.normal_) -> Tensor:
            self.drawn = True
            if not generators:
                generators.extend(_generator(s[min(step, len(s) - 1)]) for s in self._seeds)
            return _rows(generators, like.shape[1:] if like.dim() > 1 else like.shape, like, fill)

        return draw

    @cached_property
    def _seeds(self) -> list[np.ndarray]:
        """Seeds of each client's steps 0 to K_i: the last one is that of `upload`, in every stack."""
        streams = (seeds.generator(self.seed, "method", self.round, c) for c in self.clients)
        return [
            rng.integers(2**63, size=count + 1)
            for rng, count in zip(streams, self.steps, strict=True)
        ]


def server_noise(seed: int, round: int) -> Random:
    """Draws of the server in this round."""
    generators: list[torch.Generator] = []

    def draw(like: Tensor, fill: Fill = Tensor.normal_) -> Tensor:
        if not generators:
            generators.append(_generator(seeds.integer(seed, "server_method", round)))
        return _rows(generators, like.shape, like, fill)[0]

    return draw


def _generator(seed: int) -> torch.Generator:
    # Torch's generator for the CPU uses 32 bits of it.
    return torch.Generator().manual_seed(int(seed))


def _rows(generators: list[torch.Generator], shape: torch.Size, like: Tensor, fill: Fill) -> Tensor:
    """A row of this shape from each generator."""
    rows = torch.empty(len(generators), *shape, dtype=like.dtype)
    for row, generator in zip(rows, generators, strict=True):
        if fill(row, generator=generator) is not row:
            raise ValueError(
                "ctx.random: `fill` must fill the row that it is given, in place, and return it, "
                "as torch.Tensor.normal_ does"
            )
    return rows.to(like.device)
