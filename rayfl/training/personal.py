"""The accuracy of one client's own model.

It is the global model, or the one that the method keeps for the client, after some local steps on the
client's own data, as in Wang et al., "Federated Evaluation of On-device Personalization", 2019,
arXiv:1910.10252.
"""

import numpy as np
import torch

from rayfl.algorithms.base import Algorithm, ClientContext
from rayfl.training.batches import as_tensor
from rayfl.training.engine import Engine
from rayfl.training.units import Arrays, Broadcast, Personal, PersonalResult, WorkUnit


@torch.no_grad()
def evaluate_personal(
    engine: Engine, asked: Personal, point: Broadcast, memory: Arrays | None
) -> PersonalResult:
    """Accuracies on the client's own distribution; `point`: the global model, `memory`: the client's.

    The steps are local SGD with the settings of the experiment, on minibatches of the client's next round.
    """

    def accuracy(w: np.ndarray, buffers: np.ndarray) -> float:
        scores = engine.scores(w, buffers, asked.samples, asked.client)
        return float(scores @ asked.weights)

    before = accuracy(point.start, point.buffers)
    w, buffers = _own_model(engine, asked, point, memory), point.buffers
    if asked.steps:
        unit = WorkUnit(asked.round + 1, (asked.client,), asked.lr)
        with engine.following(Algorithm()):
            trained, _ = engine.train(unit, Broadcast(w, {}, buffers), [None], asked.steps)
        change, summed = (trained.sums[name] / trained.weights[0] for name in ("delta", "buffers"))
        w, buffers = (w + change).astype(np.float32), summed.astype(np.float32)
    return PersonalResult(before, accuracy(w, buffers))


def _own_model(
    engine: Engine, asked: Personal, point: Broadcast, memory: Arrays | None
) -> np.ndarray:
    """`[P]`, as the method has it before any further step."""
    algorithm, start = engine.algorithm.at(max(1, asked.round)), as_tensor(point.start)
    kept = (
        algorithm.init_client(start)
        if memory is None
        else {name: as_tensor(value) for name, value in memory.items()}
    )
    ctx = ClientContext(
        start=start[None],
        shared={},
        lr=asked.lr,
        steps=torch.tensor([[float(asked.steps)]]),
        step=0,
        round=asked.round,
        experiment=engine.experiment,
        samples=torch.tensor([[float(engine.partition.sizes[asked.client])]]),
    )
    return algorithm.personal({n: v[None] for n, v in kept.items()}, ctx)[0].numpy()
