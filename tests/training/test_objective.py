"""Losses, gradients and Hessian-vector products against PyTorch's dense Hessian, and against PyHessian."""

import numpy as np
import pyhessian
import pytest
import torch
from conftest import each
from nets import a_dataset, objective_of, small_objective
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rayfl.flatness.spectrum import lanczos
from rayfl.training.objective import PASS

DATA = a_dataset((6,))


def flat_loss(objective, model, data):
    """The loss as a function of the flat vector, written without any of rayfl's engines."""
    inputs = torch.from_numpy(data.x_train).double()
    inputs = inputs.permute(0, 3, 1, 2) if inputs.dim() == 4 else inputs
    targets = torch.from_numpy(data.y_train)

    def loss(w):
        named = {info.name: info.view(w) for info in objective.function.layout.parameters}
        return F.cross_entropy(functional_call(model, named, (inputs,)), targets)

    return loss


def a_convnet():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 4)
    )


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), (6,)),
    "convnet": (a_convnet, (6, 6, 2)),
}


@each(model=MODELS)
def test_equals_the_dense_hessian(model):
    make, shape = model
    torch.manual_seed(0)
    data, net = a_dataset(shape), make()
    objective = objective_of(net, data)
    loss = flat_loss(objective, net, data)
    w = objective.w
    assert len(w) < 500
    value, gradient = objective.gradient()
    assert value == pytest.approx(float(loss(w)), rel=1e-12)
    torch.testing.assert_close(gradient, torch.func.grad(loss)(w), rtol=1e-8, atol=1e-10)
    dense = torch.func.hessian(loss)(w)
    vectors = torch.randn(3, len(w), dtype=torch.double)
    torch.testing.assert_close(objective.products(vectors), vectors @ dense, rtol=1e-8, atol=1e-10)
    found = lanczos(objective.products, vectors[0], len(w), 5, 1e-10)
    expected = torch.linalg.eigvalsh(dense).flip(0)
    np.testing.assert_allclose(found.eigenvalues[:5], expected[:5], rtol=1e-8, atol=1e-10)
    assert found.eigenvalues[-1] == pytest.approx(float(expected[-1]), abs=1e-7)


def test_losses_and_gradients_elsewhere():
    objective, _ = small_objective()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    loss = flat_loss(objective, net, DATA)
    directions = torch.randn(2, len(objective.w), dtype=torch.double)
    coefficients = torch.tensor([[0.0, 0.0], [0.3, -0.2], [1.0, 2.0]])
    found = objective.losses(coefficients, directions)
    points = objective.w + coefficients.double() @ directions
    torch.testing.assert_close(found, torch.stack([loss(p) for p in points]))
    value, gradient = objective.gradient(directions[0])
    at = objective.w + directions[0]
    assert value == pytest.approx(float(loss(at)))
    torch.testing.assert_close(gradient, torch.func.grad(loss)(at), rtol=1e-8, atol=1e-10)


def test_more_samples_than_one_pass_takes_are_one_mean(monkeypatch):
    objective, _ = small_objective()
    v = torch.randn(1, len(objective.w), dtype=torch.double)
    whole = objective.gradient(), objective.products(v)
    monkeypatch.setitem(PASS, "cpu", 7)
    parts = objective.gradient(), objective.products(v)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


def test_attention_has_second_derivatives():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(2, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.inner(x.unflatten(-1, (3, 2)))
            return self.head(F.scaled_dot_product_attention(x, x, x).mean(1))

    torch.manual_seed(0)
    net = Attends()
    objective = objective_of(net, DATA)
    with sdpa_kernel(SDPBackend.MATH):
        dense = torch.func.hessian(flat_loss(objective, net, DATA))(objective.w)
    v = torch.randn(2, len(objective.w), dtype=torch.double)
    torch.testing.assert_close(objective.products(v), v @ dense, rtol=1e-7, atol=1e-9)


def test_a_dropout_layer_is_off():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    objective = objective_of(net, DATA)
    assert objective.gradient()[0] == objective.gradient()[0]
    net.eval()
    assert objective.gradient()[0] == pytest.approx(
        float(flat_loss(objective, net, DATA)(objective.w))
    )


def test_equals_pyhessian_on_a_convnet():
    """The estimator that most papers name: power iteration with the double backward pass."""
    data = a_dataset((6, 6, 2))
    net = a_convnet()
    objective = objective_of(net, data, torch.float32)
    found = lanczos(objective.products, torch.randn(len(objective.w)), 200, 5, 1e-4)
    inputs = torch.from_numpy(data.x_train).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(data.y_train)
    theirs = pyhessian.hessian(net, F.cross_entropy, data=(inputs, targets), cuda=False)
    values, _ = theirs.eigenvalues(maxIter=2000, tol=1e-7, top_n=3)
    np.testing.assert_allclose(found.eigenvalues[:3], values, rtol=2e-3)
