"""The training of one client again, and where its method took gradients.

Shapes: P parameters, Q entries of float buffers, K local steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext, Grad, Vectors
from rayfl.algorithms.vectors import cosine
from rayfl.training.batches import as_tensor
from rayfl.training.engine import Engine
from rayfl.training.units import Arrays, Broadcast, WorkUnit


class Replay(NamedTuple):
    """One client's round."""

    end: Tensor
    """Its last iterate, `[P]`."""
    buffers: Tensor
    """Its float buffers then, `[Q]`."""
    perturbation: Tensor | None
    """e of the first local step whose gradient was taken at x + e, `[P]`; None: there is no such step."""
    cosines: tuple[float, ...]
    """Cosine of each such e with the reference, in the order of the steps."""


class _Watched:
    """An algorithm that notes, in each local step, the gradient's point that is farthest from the iterate.

    It also notes how far the client came, which is not what every method uploads.
    """

    def __init__(self, algorithm: Algorithm, note: Callable[[Tensor], None], came: list[Tensor]):
        self._algorithm, self._note = algorithm, note
        self._came = came  # gets the last iterate - start, `[P]`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm, name)

    def at(self, round: int) -> "_Watched":
        return _Watched(self._algorithm.at(round), self._note, self._came)

    def local_step(
        self, x: Tensor, memory: Vectors, grad: Grad, ctx: ClientContext
    ) -> tuple[Tensor, Vectors]:
        farthest = torch.zeros_like(x)

        def noted(at: Tensor, *penalty: Any, **options: Any) -> Tensor:
            nonlocal farthest
            e = at - x
            if (
                self._algorithm.keeps_models
            ):  # `at` may be such a model: `e` is no perturbation of x
                return grad(at, *penalty, **options)
            farthest = e if e.norm() > farthest.norm() else farthest
            return grad(at, *penalty, **options)

        done = self._algorithm.local_step(x, memory, noted, ctx)
        self._note(farthest[0])
        return done

    def upload(self, delta: Tensor, memory: Vectors, ctx: ClientContext) -> tuple[Vectors, Vectors]:
        self._came.append(delta[0].clone())
        return self._algorithm.upload(delta, memory, ctx)


def replay(
    engine: Engine, unit: WorkUnit, broadcast: Broadcast, memory: Arrays | None, reference: Tensor
) -> Replay:
    """Train the unit's only client again; `reference [P]`: what its perturbations are compared with."""
    first: list[Tensor] = []
    cosines: list[float] = []

    def note(e: Tensor) -> None:
        if e.any():
            first.extend([] if first else [e.clone()])
            cosines.append(float(cosine(e, reference)))

    came: list[Tensor] = []
    with engine.following(cast(Algorithm, _Watched(engine.algorithm, note, came))):
        result, _ = engine.train(unit, broadcast, [memory])
    end = as_tensor(broadcast.start) + came[0].cpu()
    buffers = as_tensor(result.sums["buffers"]) / float(result.weights[0])
    return Replay(
        end.to(engine.device),
        buffers.to(engine.device),
        first[0] if first else None,
        tuple(cosines),
    )
