"""FedWMSAM's options that together are its released code, against a program written as that code is.

It keeps a list of parameter tensors, and takes entry j of a flat vector in torch's order for the
perturbation of tensor j. Everything is float64, on a small convolutional network: there, rayfl's flat
vector has another order than torch's.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl.algorithms import ALGORITHMS
from rayfl.algorithms.base import ServerContext, Setup
from rayfl.training.batches import Minibatch
from rayfl.training.flat import Layout
from rayfl.training.function import Function
from rayfl.training.gradient import PerClient
from rayfl.training.local import SGD, LocalStep, train_stack

RELEASED = {
    "perturbation": "scalars",
    "perturb_sign": -1,
    "momentum_factor": 0.998,
    "nominal_steps": True,
    "adapt_at_zero": True,
}
COHORTS = ((0, 1), (1, 2), (0, 3))
ETA, DECAY, MAX_NORM, RHO, K, NOMINAL, N = 0.1, 1e-3, 0.5, 0.3, 4, 3.7, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.Flatten(), nn.Linear(50, 3)
    ).double()


def flat(tensors) -> Tensor:
    """In torch's order."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


class Released:
    """Server and clients on flat vectors in torch's order."""

    def __init__(self, alpha: float):
        self.x = flat(network().parameters())
        self.momentum, self.c = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.c_i, self.alpha = torch.zeros(N, len(self.x), dtype=torch.float64), alpha

    def client(self, i: int, batches: list[Minibatch]) -> Tensor:
        """The client's update."""
        model = network()
        parameters = list(model.parameters())
        nn.utils.vector_to_parameters(self.x.clone(), parameters)
        optimizer = torch.optim.SGD(parameters, lr=ETA, weight_decay=DECAY)
        personal = self.momentum + (self.c - self.c_i[i]) * self.alpha / (1 - self.alpha)
        target = self.x.clone()
        for batch in batches:
            differ = target - flat(parameters)
            total = sum(differ[j].abs() for j in range(len(parameters)))
            kept = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for j, p in enumerate(parameters):
                    p.add_(-RHO * differ[j] / (total + 1e-7))
            optimizer.zero_grad()
            loss = self.alpha * F.cross_entropy(model(batch.inputs[0]), batch.targets[0])
            everything = torch.cat([p.reshape(-1) for p in parameters])
            (loss + (1 - self.alpha) * (everything * personal).sum()).backward()
            with torch.no_grad():
                for p, old in zip(parameters, kept, strict=True):
                    p.copy_(old)
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            target = target + personal
        return flat(parameters) - self.x

    def round(self, batches: dict[int, list[Minibatch]]) -> None:
        updates, values = {i: self.client(i, batches[i]) for i in batches}, []
        change = torch.zeros_like(self.c)
        for i, update in updates.items():
            length = update.norm() * self.momentum.norm()
            values.append(float(update @ self.momentum / length) + 1 if length > 0 else 0.0)
            new = self.c_i[i] - self.c - update / NOMINAL / ETA
            change += new - self.c_i[i]
            self.c_i[i] = new
        mean = torch.stack(list(updates.values())).mean(0)
        self.alpha = 0.99 * self.alpha + 0.01 * max(0.1, min(np.mean(values), 0.9))
        self.c = self.c + change / N
        self.momentum = -mean / NOMINAL / ETA * 0.998
        self.x = self.x + mean


@pytest.mark.parametrize(
    "options", [RELEASED, {**RELEASED, "perturb_sign": 1}], ids=["as is", "not"]
)
def test_three_rounds_equal_the_released_program(options):
    """All of w, c, c_i, the momentum and alpha; and with one option less, they do not."""
    alpha = 0.3  # not alpha_min, where adapting to it would not show
    released, algorithm = Released(alpha), ALGORITHMS["fedwmsam"](rho=RHO, alpha=alpha, **options)
    model = network()
    layout = Layout(model)
    parameters = [p.shape.numel() for p in model.parameters()]
    setup = Setup(N, NOMINAL, tuple(parameters), layout.first_entries())
    w = torch.zeros(layout.size, dtype=torch.float64)
    ours(layout, released.x, w)
    server, memories = algorithm.init_server(w), {}
    sgd = SGD(lr=ETA, weight_decay=DECAY, max_norm=MAX_NORM)
    for cohort in COHORTS:
        batches = {i: [minibatch() for _ in range(K)] for i in cohort}
        released.round(batches)
        start, shared = algorithm.broadcast(w, server)
        uploads = []
        for i in cohort:
            first = {name: v[None] for name, v in algorithm.init_client(w).items()}
            trained = train_stack(
                LocalStep(algorithm, PerClient(Function(model, layout)), sgd, setup),
                batches[i].__getitem__,
                start,
                shared,
                memories.get(i, first),
                [K],
            )
            memories[i] = trained.memory
            uploads.append(trained.uploads)
        mean = {n: torch.stack([upload[n][0] for upload in uploads]).mean(0) for n in uploads[0]}
        ctx = ServerContext(lr=ETA, steps=float(K), participation=len(cohort) / N)
        w, server = algorithm.server_step(w, server, mean, ctx)
    theirs = {
        "w": (released.x, w),
        "momentum": (released.momentum, server["Delta"]),
        "c": (released.c, server["c"]),
        "c_3": (released.c_i[3], memories[3]["c_i"][0]),
    }
    apart = {
        n: float((ours(layout, left) - right).abs().max()) for n, (left, right) in theirs.items()
    }
    apart["alpha"] = abs(released.alpha - server["alpha"].item())
    if options is RELEASED:
        assert max(apart.values()) < 1e-9, apart
    else:
        assert apart["w"] > 1e-6


def ours(layout: Layout, vector: Tensor, out: Tensor | None = None) -> Tensor:
    """A vector in torch's order, in rayfl's."""
    out = torch.zeros_like(vector) if out is None else out
    begin = 0
    for slot in layout.parameters:
        size = slot.shape.numel()
        slot.view(out).copy_(vector[begin : begin + size].view(slot.shape))
        begin += size
    return out


def minibatch() -> Minibatch:
    inputs = torch.randn(1, 6, 3, 8, 8, dtype=torch.float64)
    return Minibatch(inputs, torch.randint(3, (1, 6)), None)
