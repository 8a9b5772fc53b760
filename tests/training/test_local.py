"""The local loop, on clients that minimise half the squared distance to a target."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from noisy import Noisy
from torch import Tensor

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.base import ExperimentInfo, TensorInfo
from rayfl.algorithms.noise import ClientNoise
from rayfl.training.local import SGD, LocalStep, Trained, Training

TARGETS = torch.tensor([[4.0, 0.0], [0.0, 8.0], [-2.0, 2.0]])
INFO = ExperimentInfo((8, 8, 8), 4, 1, None, (TensorInfo("w", torch.Size([2]), 0),))
PLAIN = SGD(lr=0.5, weight_decay=0.0, clip_norm=None)


class Distance:
    """1/2 ||x - target||^2."""

    stacks = True

    def __call__(self, x: Tensor, batch: Tensor, loss=None) -> tuple[Tensor, Tensor]:
        return x - batch, (x - batch).square().sum(-1) / 2


@dataclass(frozen=True, kw_only=True)
class Counting(Algorithm):
    """FedAvg whose clients remember how many local steps they have taken, and which was the last."""

    def init_client(self, w):
        return {"taken": torch.zeros(1), "last": torch.zeros(1), "kept": torch.ones(1)}

    def local_step(self, x, memory, grad, ctx):
        taken, last = memory["taken"] + 1, torch.full_like(memory["last"], ctx.step)
        return grad(x), memory | {"taken": taken, "last": last}

    def upload(self, delta, memory, ctx):
        return {"delta": delta, "steps": ctx.steps}, memory


@dataclass(frozen=True, kw_only=True)
class Lazy(Algorithm):
    """Looks at no sample."""

    def local_step(self, x, memory, grad, ctx):
        return torch.ones_like(x), memory


def train(algorithm: Algorithm, steps: list[int], sgd: SGD = PLAIN) -> Trained:
    start = torch.zeros(2)
    first = algorithm.init_client(start)
    memory = {name: value.expand(len(steps), -1) for name, value in first.items()}
    targets = TARGETS[: len(steps)]
    step = LocalStep(algorithm, Distance(), sgd, INFO)
    return Training(step, lambda k: targets, start, {}, memory, steps).run()


def test_a_client_stops_after_its_own_steps():
    trained = train(Counting(), [3, 1, 2])
    halved = 1 - torch.tensor([[0.5**3], [0.5], [0.5**2]])
    assert torch.equal(trained.uploads["delta"], halved * TARGETS)
    assert trained.uploads["steps"].tolist() == [[3], [1], [2]]
    assert trained.memory["taken"].tolist() == [[3], [1], [2]]
    assert trained.memory["last"].tolist() == [[2], [0], [1]]
    assert trained.memory["kept"].tolist() == [[1], [1], [1]]
    assert trained.backward_passes == 6


def test_the_loss_is_the_mean_over_the_clients_own_steps():
    trained = train(ALGORITHMS["fedavg"](), [3, 1, 2])
    at_start = TARGETS.square().sum(-1) / 2
    means = torch.tensor([(1 + 1 / 4 + 1 / 16) / 3, 1, (1 + 1 / 4) / 2])
    torch.testing.assert_close(trained.losses, at_start * means)


def test_sams_loss_is_the_one_before_the_ascent():
    trained = train(ALGORITHMS["fedsam"](rho=1.0), [1, 1, 1])
    torch.testing.assert_close(trained.losses, TARGETS.square().sum(-1) / 2)
    assert trained.backward_passes == 6


def test_a_method_may_compute_no_gradient_at_all():
    trained = train(Lazy(), [2, 1])
    assert trained.uploads["delta"].tolist() == [[-1, -1], [-0.5, -0.5]]
    assert trained.losses.tolist() == [0, 0]
    assert trained.backward_passes == 0


@pytest.mark.parametrize(
    ("sgd", "expected"),
    [
        # x - lr (clip(d) + wd x) at x = (3, 4): ||x|| = 5, d = (6, 8), ||d|| = 10.
        (SGD(lr=0.1, weight_decay=0.0, clip_norm=None), [2.4, 3.2]),
        (SGD(lr=0.1, weight_decay=0.5, clip_norm=None), [2.25, 3.0]),
        (SGD(lr=0.1, weight_decay=0.0, clip_norm=5.0), [2.7, 3.6]),
        (SGD(lr=0.1, weight_decay=0.5, clip_norm=5.0), [2.55, 3.4]),
        (SGD(lr=0.1, weight_decay=0.0, clip_norm=20.0), [2.4, 3.2]),
    ],
)
def test_a_step_clips_the_direction_and_not_the_decay(sgd, expected):
    x, direction = torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0]])
    stays = torch.tensor([[1.0], [0.0]])
    both = x.repeat(2, 1)
    sgd.step_(x, direction, active=None)
    sgd.step_(both, direction.repeat(2, 1), stays)

    torch.testing.assert_close(x, torch.tensor([expected]), rtol=1e-6, atol=0)
    assert both.tolist() == [x[0].tolist(), [3, 4]]
    assert direction.tolist() == [[6, 8]]


@pytest.mark.parametrize("clip_norm", [None, 3.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_torchs_sgd(nesterov, clip_norm):
    """Two clients, one of whom stays after two steps, against `torch.optim.SGD`."""
    torch.manual_seed(0)
    options = {"weight_decay": 0.1, "momentum": 0.8, "nesterov": nesterov}
    directions = torch.randn(4, 2, 5, dtype=torch.float64) * 2
    x = torch.randn(2, 5, dtype=torch.float64)
    theirs = [torch.nn.Parameter(row.clone()) for row in x]
    optimizers = [torch.optim.SGD([p], lr=0.3, **options) for p in theirs]
    velocity, mine = torch.zeros_like(x), SGD(lr=0.3, clip_norm=clip_norm, **options)
    for k, direction in enumerate(directions):
        counts = torch.tensor([[4], [2]])
        mine.step_(x, direction.clone(), (counts > k).double() if k >= 2 else None, velocity)
        for i, (p, optimizer) in enumerate(zip(theirs, optimizers, strict=True)):
            if k < counts[i]:
                norm = direction[i].norm()
                factor = 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))
                p.grad = direction[i] * factor
                optimizer.step()
    torch.testing.assert_close(x, torch.stack([p.data for p in theirs]), rtol=1e-12, atol=1e-12)


def test_a_start_of_a_clients_own_draws_no_random_numbers():
    """They would be those of its first step."""

    class Anywhere(Algorithm):
        def client_start(self, memory, ctx):
            return ctx.start + ctx.random(ctx.start)

    with pytest.raises(RuntimeError, match="no random numbers"):
        train(Anywhere(), [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, r"samples=0\) needs one sample"),
        ({"samples": -1}, r"samples=-1\) needs one sample"),
        ({"cross_entropy": False}, "needs a penalty"),
    ],
)
def test_a_gradient_of_nothing_is_refused(options, message):
    class Asks(Algorithm):
        def local_step(self, x, memory, grad, ctx):
            return grad(x, **options), memory

    with pytest.raises(ValueError, match=message):
        train(Asks(), [1])


def test_each_client_is_clipped_by_its_own_norm():
    directions = torch.tensor([[30.0, 40.0], [0.3, 0.4], [0.0, 0.0]])
    sgd = SGD(lr=1.0, weight_decay=0.0, clip_norm=1.0)
    x = torch.zeros(3, 2)
    sgd.step_(x, directions, active=None)
    torch.testing.assert_close(x, -torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


@dataclass(frozen=True, kw_only=True)
class Signs(Algorithm):
    """Sums the gradients of its round, and steps by ten times the sign."""

    clips_gradients: ClassVar[bool] = True

    def init_client(self, w):
        return {"total": torch.zeros_like(w)}

    def local_step(self, x, memory, grad, ctx):
        if ctx.step == 0:
            memory = memory | {"sum": torch.zeros_like(x)}
        g = grad(x)
        return 10 * g.sign(), memory | {"sum": memory["sum"] + g}

    def upload(self, delta, memory, ctx):
        return {"delta": delta}, {"total": memory["total"] + memory["sum"]}


def test_a_method_may_have_its_gradients_clipped_instead_of_its_direction():
    """From 0 to the targets (4, 0) and (0, 8), in steps of 5 to (5, 0) and (0, 5), (0, 10)."""
    sgd = SGD(lr=0.5, weight_decay=0.0, clip_norm=2.0)
    trained = train(Signs(), [1, 2], sgd)
    assert trained.uploads["delta"].tolist() == [[5, 0], [0, 10]]
    torch.testing.assert_close(trained.memory["total"], torch.tensor([[-2.0, 0.0], [0.0, -4.0]]))


def test_the_memory_of_a_round_ends_with_it():
    assert train(Signs(), [1, 2]).memory.keys() == {"total"}


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_client_rounds_alike_beside_one_that_has_stopped(clip_norm):
    torch.manual_seed(0)
    sgd = SGD(lr=0.1, weight_decay=0.0, clip_norm=clip_norm)
    direction, x = torch.randn(2, 1, 1000)
    beside, alone = x.repeat(2, 1), x.clone()
    sgd.step_(beside, direction.repeat(2, 1), torch.tensor([[1.0], [0.0]]))
    sgd.step_(alone, direction, None)
    assert torch.equal(beside, torch.cat([alone, x]))


def test_a_client_draws_in_a_stack_what_it_draws_alone():
    """Steps and uploads, though the stack has clients that go on for longer."""
    clients, steps, step = [7, 3, 5], [3, 1, 2], LocalStep(Noisy(), Distance(), PLAIN, INFO)

    def trained(rows: slice) -> Trained:
        noise = ClientNoise(0, 1, clients[rows], steps[rows])
        return Training(
            step, lambda k: TARGETS[rows], torch.zeros(2), {}, {}, steps[rows], noise=noise
        ).run()

    stack, alone = trained(slice(3)), [trained(slice(i, i + 1)) for i in range(3)]
    for name, value in stack.uploads.items():
        assert torch.equal(value, torch.cat([one.uploads[name] for one in alone]))
    exact = train(ALGORITHMS["fedavg"](), steps).uploads["delta"]
    assert ((stack.uploads["delta"] - exact).abs() > 1e-3).all()


@dataclass(frozen=True, kw_only=True)
class Hoards(Algorithm):
    """Remembers the iterate that it was given, and steps by it."""

    def init_client(self, w):
        return {"x": w}

    def local_step(self, x, memory, grad, ctx):
        return x, {"x": x}


def test_the_iterate_that_an_algorithm_keeps_or_returns_does_not_move_on():
    start = torch.tensor([2.0, 4.0])
    sgd = SGD(lr=0.5, weight_decay=0.5, clip_norm=None)
    step = LocalStep(Hoards(), Distance(), sgd, INFO)
    trained = Training(step, lambda k: TARGETS[:1], start, {}, {"x": start[None]}, [2]).run()
    # x <- x - 0.5 (x + 0.5 x) = x / 4, twice; the second step was given start / 4.
    assert trained.memory["x"].tolist() == [[0.5, 1.0]]
    assert trained.uploads["delta"].tolist() == [[0.125 - 2, 0.25 - 4]]
