"""Quadratic clients for rayfl's own local loop, and the smallest server that can run its algorithms.

Shapes: C clients of a stack, P parameters.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy_reference import Federation
from torch import Tensor

from rayfl.algorithms import Algorithm
from rayfl.algorithms.base import (
    Batch,
    ClientContext,
    ExperimentInfo,
    Loss,
    ServerContext,
    TensorInfo,
    Vectors,
)
from rayfl.training.gradients.oracle import CROSS_ENTROPY
from rayfl.training.local import SGD, LocalStep, Trained, Training

# For methods that treat matrices otherwise than vectors: a wide one, a tall one and a vector.
SHAPES = dict.fromkeys(("fedmuon", "fedsol"), ((2, 2, 1, 2), (3, 2), (2,)))

# A context for methods that do not look at the clients' numbers of samples.
client_context = functools.partial(ClientContext, samples=torch.ones(1, 1))


class Minibatch(NamedTuple):
    """The quadratics of C clients in one local step."""

    A: Tensor
    """`[C, P, P]`."""
    b: Tensor
    """`[C, P]`."""
    apart: Tensor
    """`[C, P]`, from b to where the first of the minibatch's two samples has it."""


class Quadratic:
    """The oracle of 1/2 z^T A z with the one output z = x - b; every row is computed alike."""

    stacks = True

    def __call__(
        self, x: Tensor, batch: Minibatch, loss: Loss = CROSS_ENTROPY
    ) -> tuple[Tensor, Tensor]:
        offset = x - batch.b
        if loss.samples == 1:
            offset = offset - batch.apart
        # Not matmul, whose rounding depends on where a row lies in memory.
        gradient = (batch.A * offset.unsqueeze(-2)).sum(-1)
        losses = (offset * gradient).sum(-1) / 2
        if not loss.cross_entropy:
            gradient = torch.zeros_like(x)
        if loss.penalty is not None:
            z = offset.unsqueeze(-2).requires_grad_()  # [C, 1, P]: one sample, P classes
            targets = torch.zeros(len(x), 1, dtype=torch.int64)
            added = loss.penalty(z, Batch(targets, lambda y: (y - batch.b).unsqueeze(-2)))
            gradient = gradient + torch.autograd.grad(added.sum(), z)[0].squeeze(-2)
        return gradient, losses


class State(NamedTuple):
    """A federated training between two rounds."""

    w: Tensor
    server: Vectors
    memories: tuple[Vectors, ...]
    """One entry for each of the N clients."""


def federation(
    rounds: int = 6,
    clients: int = 3,
    shapes: Sequence[tuple[int, ...]] = ((1, 2, 1, 2), (1,)),
    K: Sequence[int] = (4, 2, 3),
    noise: float = 0.5,
    seed: int = 0,
    cohorts: Sequence[Sequence[int]] = ((0, 2), (1,), (0, 1), (2,), (1, 2), (0, 1, 2)),
    **rest,
) -> Federation:
    """Clients that disagree in optimum and curvature (0.2 to 3), minibatches, a decaying learning rate."""
    rng, size = np.random.default_rng(seed), sum(map(math.prod, shapes))
    axes = np.linalg.qr(rng.normal(size=(clients, size, size)))[0]
    curvatures = np.geomspace(0.2, 2, clients)[:, None, None] * rng.uniform(
        1, 1.5, (clients, size, 1)
    )
    A = axes @ (curvatures * axes.transpose(0, 2, 1))
    b = rng.normal(size=(clients, 1, size)) * 3
    b -= b.mean(0)  # the clients pull a start near 0 apart
    steps = rounds, clients, max(K), size
    return Federation(
        A=A,
        b=b + noise * rng.normal(size=steps),
        x0=rng.normal(size=size),
        apart=noise * rng.normal(size=steps),
        cohorts=tuple(tuple(cohorts[r % len(cohorts)]) for r in range(rounds)),
        K=tuple(K),
        eta=tuple(0.1 * 0.9**r for r in range(rounds)),
        shapes=tuple(shapes),  # a kernel, of which the second entry in torch's order lies third
        nominal=3.5,
        **rest,
    )


def problem(name: str, **rest) -> Federation:
    """A federation in which all that the method does shows."""
    return federation(shapes=SHAPES[name], **rest) if name in SHAPES else federation(**rest)


def begin(algorithm: Algorithm, f: Federation, dtype: torch.dtype) -> State:
    """The state before the first round."""
    w = torch.tensor(f.x0, dtype=dtype)
    first = algorithm.init_client(w)  # one dict for all: changing it in place would show
    return State(w, algorithm.init_server(w), (first,) * f.N)


def train(
    algorithm: Algorithm, f: Federation, r: int, state: State, clients: Sequence[int]
) -> Trained:
    """Train these clients of round r as one stack."""
    start, shared = algorithm.broadcast(state.w, state.server)
    ids, dtype = list(clients), start.dtype
    A, b, apart = (torch.tensor(v, dtype=dtype) for v in (f.A[ids], f.b[r, ids], f.apart[r, ids]))
    names = state.memories[ids[0]]
    sgd = SGD(lr=f.eta[r], weight_decay=f.wd, clip_norm=f.C)
    return Training(
        LocalStep(algorithm, Quadratic(), sgd, info(f)),
        lambda k: Minibatch(A, b[:, k], apart[:, k]),
        start,
        shared,
        {name: torch.stack([state.memories[i][name] for i in ids]) for name in names},
        [f.K[i] for i in ids],
    ).run()


def info(f: Federation) -> ExperimentInfo:
    """Return the facts that all clients of `f` know: one epoch of batches of two samples."""
    offsets = np.cumsum(f.sizes) - f.sizes
    tensors = (
        TensorInfo(str(i), torch.Size(shape), int(offset))
        for i, (shape, offset) in enumerate(zip(f.shapes, offsets, strict=True))
    )
    return ExperimentInfo((round(2 * f.nominal),) * f.N, 2, 1, None, tuple(tensors))


def aggregate(algorithm: Algorithm, f: Federation, r: int, state: State, trained: Trained) -> State:
    """Return the state after the server has aggregated a cohort that was trained as one stack."""
    cohort = f.cohorts[r]
    mean = {name: value.sum(0) / len(cohort) for name, value in trained.uploads.items()}
    steps = sum(f.K[i] for i in cohort) / len(cohort)
    ctx = ServerContext(lr=f.eta[r], steps=steps, participation=len(cohort) / f.N, round=r + 1)
    w, server = algorithm.server_step(state.w, state.server, mean, ctx)
    memories = list(state.memories)
    for row, i in enumerate(cohort):
        memories[i] = {name: value[row] for name, value in trained.memory.items()}
    return State(w, server, tuple(memories))


def states(
    algorithm: Algorithm, f: Federation, dtype: torch.dtype = torch.float64
) -> Iterator[State]:
    """The state after each round."""
    state = begin(algorithm, f, dtype)
    for r, cohort in enumerate(f.cohorts):
        state = aggregate(algorithm, f, r, state, train(algorithm, f, r, state, cohort))
        yield state


def last(algorithm: Algorithm, f: Federation, dtype: torch.dtype = torch.float64) -> State:
    """The state after the last round."""
    *_, state = states(algorithm, f, dtype)
    return state
