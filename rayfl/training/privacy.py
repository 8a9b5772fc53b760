"""Differential privacy at the level of clients: the Gaussian mechanism on the sum of clipped uploads.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv:1710.06963,
Algorithm 1 (DP-FedAvg), with flat clipping, equal weights and the estimator of a fixed denominator:

    mean = (sum_i u_i min(1, C / ||u_i||) + N(0, (z C)^2 I)) / S

Legend: u_i = all vectors that client i uploads, one after the other; C = `clip`; z = `noise`; S = clients of
a round, or their mean where that varies. One client moves the sum by no more than C, whatever its data: all
that it sends is in u_i. Where a method uploads a control variate too, a bound of the update alone would leave
that vector to tell everything.

`at`: the server adds the noise once, or each of the S clients adds N(0, (z C)^2 / S), whose sum is the same.
Then no one need be trusted with an upload, if the server gets to see their sum alone (secure aggregation).

Shapes: C clients of a stack, P entries of a vector.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rayfl import seeds
from rayfl.algorithms.base import Vectors

At = Literal["server", "clients"]

# The factor of a clipped upload is rounded to float32, and so is each product: so much smaller, the norm is
# within the bound all the same.
MARGIN = 1 - 2**-22


@dataclass(frozen=True, kw_only=True)
class GaussianMechanism:
    """Bound of each client's uploads, and the noise of their sum."""

    seed: int
    clip: float
    noise: float
    """z, standard deviation of the sum's noise over `clip`."""
    at: At
    cohort: float
    """S, which the sum is divided by."""

    @property
    def clients_add_noise(self) -> bool:
        return self.at == "clients" and self.noise > 0

    def clipped(self, uploads: Vectors) -> tuple[Vectors, Tensor]:
        """New uploads `[C, P]` within the bound, and which clients' were not, bool `[C]`."""
        norms = [torch.linalg.vector_norm(v, dim=-1, dtype=torch.float64) for v in uploads.values()]
        norm = torch.stack(norms).norm(dim=0)
        outside = norm > self.clip
        factor = torch.where(outside, self.clip * MARGIN / norm, 1.0).unsqueeze(-1)
        return {name: v * factor.to(v) for name, v in uploads.items()}, outside

    def add_share_(self, uploads: Vectors, round: int, clients: Sequence[int]) -> None:
        """Add each client's share of the noise to its row, in place; nothing if the server adds it."""
        if not self.clients_add_noise:
            return
        deviation = self.noise * self.clip / math.sqrt(self.cohort)
        for row, client in enumerate(clients):
            rng = seeds.generator(self.seed, "privacy", round, client)
            _add_normal_([v[row] for v in uploads.values()], deviation, rng)

    def add_noise_(self, sums: Vectors, round: int) -> None:
        """Add the noise to the sums over the cohort `[P]`, in place; nothing if the clients added it."""
        if self.at == "server" and self.noise > 0:
            rng = seeds.generator(self.seed, "server_privacy", round)
            _add_normal_(list(sums.values()), self.noise * self.clip, rng)


def _add_normal_(vectors: list[Tensor], deviation: float, rng: np.random.Generator) -> None:
    """Add normal numbers, drawn on the CPU, for the generators of a GPU give others."""
    for vector in vectors:
        drawn = torch.from_numpy(rng.standard_normal(vector.shape, np.float32))
        vector.add_(drawn.to(vector), alpha=deviation)
