"""The loss on a probe set as a pool of clients computes it: an `Objective` in pieces.

Shapes: P parameters, Q entries of float buffers, n samples, k points or vectors, j directions.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rayfl.federation.pool import Pool
from rayfl.flatness.measures import COSTS
from rayfl.training.batches import as_tensor
from rayfl.training.units import Broadcast, Probe, ProbeResult

# Samples that one unit covers: fixed, so that no sum depends on the number of actors.
PROBE_UNIT = 512


class PooledObjective:
    """An `Objective`: the mean loss on samples of a split; each call is units of `PROBE_UNIT` samples."""

    def __init__(
        self,
        pool: Pool,
        round: int,
        w: Tensor,
        buffers: Tensor,
        split: Literal["train", "test"],
        samples: np.ndarray,
        on_work: Callable[[float], None] = lambda passes: None,
    ):
        """`w [P]` and `buffers [Q]` after `round` rounds; `samples`: indices into the split's data, `[n]`.

        `on_work` is told how many samples' forward passes each unit was worth.
        """
        self.w, self.pool, self.round, self.samples = w, pool, round, samples
        self._split: Literal["train", "test"] = split
        self._on_work = on_work
        self._point = pool.put(Broadcast(w.numpy(), {}, buffers.numpy()))

    def losses(self, coefficients: Tensor, directions: Tensor) -> Tensor:
        (means,) = self._ask("losses", directions, [coefficients])
        return torch.from_numpy(sum(share * result.losses for share, result in means))

    def gradient(self, offset: Tensor | None = None) -> tuple[float, Tensor]:
        (found,) = self.gradients(
            torch.zeros_like(self.w)[None] if offset is None else offset[None]
        )
        return found

    def gradients(self, offsets: Tensor) -> list[tuple[float, Tensor]]:
        points = torch.eye(len(offsets)).split(1)
        return [
            (
                sum(share * float(result.losses[0]) for share, result in means),
                self._vectors(means)[0],
            )
            for means in self._ask("gradient", offsets, points)
        ]

    def products(self, vectors: Tensor) -> Tensor:
        (means,) = self._ask("products", vectors, [None])
        return self._vectors(means)

    def _vectors(self, means: list[tuple[float, ProbeResult]]) -> Tensor:
        total = sum(share * as_tensor(result.vectors).double() for share, result in means)
        assert isinstance(total, Tensor)
        return total.to(self.w)

    def _ask(
        self,
        quantity: Literal["losses", "gradient", "products"],
        vectors: Tensor,
        coefficients: Sequence[Tensor | None],
    ) -> list[list[tuple[float, ProbeResult]]]:
        """For each of the coefficients, each unit's share of the samples and its means, in order.

        All units are asked for before the first is waited for.
        """
        handle = self.pool.store({"vectors": vectors.numpy()})
        n, asked = len(self.samples), []
        for given in coefficients:
            numbers = None if given is None else given.double().numpy()
            for first in range(0, n, PROBE_UNIT):
                part = self.samples[first : first + PROBE_UNIT]
                probe = Probe(quantity, self._split, part, numbers)
                passes = len(vectors) if given is None else len(given)
                future = self.pool.probe(self.round, probe, self._point, handle)
                asked.append((len(part), passes, future))
        means = []
        for size, passes, future in asked:
            means.append((size / n, self.pool.wait(future)))
            self._on_work(size * COSTS[quantity] * passes)
        units = len(asked) // len(coefficients)
        return [means[i : i + units] for i in range(0, len(means), units)]
