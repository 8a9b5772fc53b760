"""FedMuon's orthogonal factors: what they are near, and how they lie in the flat vector."""

import pytest
import torch
from quadratics import client_context, federation, last, states
from torch import nn

from rayfl.algorithms import ALGORITHMS
from rayfl.algorithms.base import ExperimentInfo
from rayfl.algorithms.fedmuon import orthogonal
from rayfl.training.flat import Layout, as_part

FedMuon = ALGORITHMS["fedmuon"]
SHAPES = [(4, 9), (9, 4), (5, 5), (1, 6), (6, 1), (16, 150)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_orthogonal_factor_is_near_that_of_the_singular_value_decomposition(shape):
    """Between U and V is a diagonal near 1, for all singular values that are not tiny."""
    M = random(3, *shape)
    U, values, Vh = torch.linalg.svd(M, full_matrices=False)
    assert (values > 0.002 * M.flatten(1).norm(dim=1, keepdim=True)).all()
    between = U.mT @ orthogonal(M) @ Vh.mT
    diagonal = between.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(between, torch.diag_embed(diagonal))
    assert diagonal.min() > 0.68
    assert diagonal.max() < 1.21


def test_no_orthogonal_factor_depends_on_the_size_of_its_matrix():
    M = random(4, 9)
    for factor in (1e-6, 1e6):
        torch.testing.assert_close(orthogonal(factor * M), orthogonal(M))
    assert not orthogonal(torch.zeros(2, 4, 9)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_of_a_stack_gets_what_it_gets_alone(shape, dtype):
    M = random(5, *shape, dtype=dtype)
    alone = torch.cat([orthogonal(M[i : i + 1]) for i in range(5)])
    assert torch.equal(orthogonal(M), alone)
    assert torch.equal(orthogonal(M.flip(0)), alone.flip(0))


class Mixed(nn.Module):
    """A tensor of each number of dimensions, in an order that mixes them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.kernel = nn.Conv2d(3, 4, (2, 3))
        self.tall = nn.Linear(2, 5)
        self.line = nn.Conv1d(2, 3, 4, bias=False)
        self.last = nn.Linear(6, 2)


def test_a_step_is_that_of_plain_tensors_in_torchs_layout():
    """Two steps of two clients, from a server's M: kernels lie channels last in the flat vector."""
    layout, gamma, beta = Layout(Mixed()), 0.25, 0.5
    method = FedMuon(gamma=gamma, beta=beta, tall=True, matrix_lr=2.0, beta1=0.0, beta2=0.0)
    P = layout.size

    def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(
            [as_part(t, v) for t, v in zip(layout.parameters, tensors, strict=True)], -1
        )

    def drawn(seed: int, *stack: int) -> list[torch.Tensor]:
        return [random(*stack, *t.shape, seed=seed + t.offset) for t in layout.parameters]

    gradients = [drawn(100, 2), drawn(200, 2)]
    momenta, Delta = drawn(300), drawn(400)
    info = ExperimentInfo((4,), 2, 1, None, tuple(layout.parameters))
    x = torch.zeros(2, P, dtype=torch.float64)
    ctx = client_context(
        start=x,
        shared={"M": flat(momenta), "Delta": flat(Delta)},
        lr=0.1,
        steps=torch.full((2, 1), 2.0),
        step=0,
        round=1,
        experiment=info,
    )
    memory = {}
    for k, gradient in enumerate(gradients):
        d, memory = method.local_step(
            x, memory, lambda x, g=gradient: flat(g), ctx._replace(step=k)
        )
        for j, t in enumerate(layout.parameters):
            g, found = gradient[j], t.view(d)
            if len(t.shape) < 2:  # Adam without moments
                expected = g / (g.abs() + method.epsilon)
            else:
                momenta[j] = beta * momenta[j] + g
                rows = momenta[j].reshape(2, t.shape[0], -1)
                longer = max(1, rows.shape[1] / rows.shape[2]) ** 0.5
                expected = (2 * longer * orthogonal(rows)).reshape(2, *t.shape)
            torch.testing.assert_close(found, (1 - gamma) * expected + gamma * Delta[j], msg=t.name)
    uploads, kept = method.upload(x, memory, ctx._replace(step=2))
    assert not kept
    for t, M in zip(layout.parameters, momenta, strict=True):
        torch.testing.assert_close(t.view(uploads["M"]), M if len(t.shape) > 1 else 0 * t.view(d))


def test_a_model_without_matrices_is_trained_by_local_adamw():
    f = federation(shapes=((3,), (2,)), wd=0.01, C=1.5)
    adamw = ALGORITHMS["local_adamw"](beta2=0.95)
    for left, right in zip(states(FedMuon(gamma=0.0), f), states(adamw, f), strict=True):
        assert torch.equal(left.w, right.w)
        assert not left.server["M"].any()


def test_a_model_without_vectors_does_not_feel_the_size_of_its_loss():
    f = federation(shapes=((2, 2), (3, 2)))
    method = FedMuon(gamma=0.0)
    end = last(method, f).w
    torch.testing.assert_close(last(method, f._replace(A=100 * f.A, eta=f.eta)).w, end)
    assert not torch.equal(end, torch.tensor(f.x0))


def test_the_momentum_is_the_cohorts_whoever_was_trained_where():
    """All clients of a cohort start alike: their one step on one gradient is one and the same."""
    f = federation(shapes=((2, 2), (2,)), K=(1, 1, 1), noise=0.0)
    f = f._replace(A=f.A[:1].repeat(3, 0), b=f.b[:, :1].repeat(3, 1))
    some = f._replace(cohorts=((0,), (1,), (2,), (1,), (0,), (2,)))
    all_of_them = f._replace(cohorts=((0, 1, 2),) * 6)
    for left, right in zip(states(FedMuon(), some), states(FedMuon(), all_of_them), strict=True):
        torch.testing.assert_close(left.server["M"], right.server["M"], rtol=0, atol=1e-12)
        torch.testing.assert_close(left.w, right.w, rtol=0, atol=1e-12)
