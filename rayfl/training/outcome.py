"""Results of a pass on a minibatch, and their comparison up to rounding."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

# Differences that are rounding: relative to the tensor, and to all tensors together. Models that compute in
# float32 in between are compared as coarsely as that makes necessary.
ROUNDING = {torch.float64: (1e-5, 1e-8), torch.float32: (1e-2, 1e-3)}


class Outcome(NamedTuple):
    """Results of a pass on a minibatch."""

    loss: Tensors
    gradient: Tensors
    buffers: Tensors  # float buffers after the step
    # After the step, if the forward pass changes them, as embeddings with `max_norm` do.
    parameters: Tensors
    logits: Tensors  # in evaluation mode


def changed_parameters(after: Tensors, before: Tensors) -> Tensors:
    """Copies of those that differ."""
    return {n: t.clone() for n, t in after.items() if not torch.equal(t, before[n])}


def difference(mine: Outcome, plain: Outcome) -> str | None:
    """Describe what differs by more than rounding, and by how much; None: nothing."""
    words = ("its {}", "the gradient of {!r}", "the buffer {!r}", "after a pass {!r}", "its {}")
    for found, expected, saying in zip(mine, plain, words, strict=True):
        if found.keys() != expected.keys():
            return f"a pass changes the parameters {sorted(found.keys() ^ expected.keys())}"
        if largest := _largest(found, expected):
            name, by = largest
            return f"{saying.format(name)} differs by {by:.1%}"
    return None


def _largest(mine: Tensors, plain: Tensors) -> tuple[str, float] | None:
    """The tensor that differs most, and its relative difference; None: all differences are rounding."""
    norms = {name: float(torch.linalg.vector_norm(tensor)) for name, tensor in plain.items()}
    whole, found = math.hypot(*norms.values()), {}
    for name, tensor in plain.items():
        own, common = ROUNDING.get(tensor.dtype, ROUNDING[torch.float32])
        by = _distance(mine[name], tensor)
        if by and not by <= own * norms[name] + common * whole:
            found[name] = by / max(norms[name], 1e-300)
    return max(found.items(), key=lambda item: item[1], default=None)


def _distance(mine: Tensor, plain: Tensor) -> float:
    """L2 norm of the difference; where both are NaN, or infinite alike, they are equal."""
    by = float(torch.linalg.vector_norm(mine - plain))
    if math.isfinite(by):
        return by
    same = (mine == plain) | (mine.isnan() & plain.isnan())
    return float(torch.linalg.vector_norm(torch.where(same, 0.0, mine - plain)))
