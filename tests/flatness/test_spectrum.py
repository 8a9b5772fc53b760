"""Eigenvalues, trace and density of matrices whose spectrum is known."""

import numpy as np
import pytest
import torch
from quadratic import Quadratic

from rayfl.flatness.spectrum import density, lanczos, trace

KNOWN = torch.tensor([50.0, 20, 10, 5, 4, *np.linspace(1, 0, 50), -3.0]).double()


@pytest.fixture
def matrix():
    return Quadratic.random(len(KNOWN), seed=0, eigenvalues=KNOWN).H


@pytest.fixture
def start():
    return torch.randn(len(KNOWN), generator=torch.Generator().manual_seed(1)).double()


def test_all_steps_give_the_whole_spectrum(matrix, start):
    found = lanczos(lambda v: v @ matrix, start, len(KNOWN), 5, 0.0)
    expected = KNOWN.sort(descending=True).values.numpy()
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-8)
    assert found.weights.sum() == pytest.approx(1)


def test_a_few_steps_give_both_ends_with_their_residuals(matrix, start):
    found = lanczos(lambda v: v @ matrix, start, len(KNOWN), 5, 0.01)
    assert len(found.eigenvalues) < 25
    np.testing.assert_allclose(found.eigenvalues[:5], KNOWN[:5], rtol=1e-3)
    assert found.eigenvalues[-1] == pytest.approx(-3, rel=1e-3)
    for value, error, v in zip(found.eigenvalues, found.errors, found.vectors, strict=False):
        assert v.norm() == pytest.approx(1)
        assert (matrix @ v - value * v).norm() == pytest.approx(error, abs=1e-8)
        assert np.abs(KNOWN.numpy() - value).min() <= error + 1e-9
    assert (found.residuals[:5] <= 0.01).all()


def test_what_has_converged_comes_back_no_second_time(start):
    """Without re-orthogonalisation float32 finds the largest eigenvalue again and again."""
    values = torch.cat([torch.tensor([1e4]), torch.linspace(1, 2, 199)]).double()
    H = Quadratic.random(200, seed=2, eigenvalues=values).H.float()
    first = torch.randn(200, generator=torch.Generator().manual_seed(0))
    found = lanczos(lambda v: v @ H, first, 100, 5, 0.0)
    assert found.eigenvalues[0] == pytest.approx(1e4, rel=1e-4)
    assert found.eigenvalues[1] < 2.1


def test_a_matrix_of_low_rank_ends_early():
    v = torch.randn(2, 30, dtype=torch.double)
    H = v.T @ v
    found = lanczos(lambda x: x @ H, torch.randn(30, dtype=torch.double), 30, 5, 0.0)
    assert len(found.eigenvalues) <= 4
    expected = torch.linalg.eigvalsh(H).flip(0)[:2]
    np.testing.assert_allclose(found.eigenvalues[:2], expected, rtol=1e-8)


def test_zero_has_a_spectrum_too():
    found = lanczos(torch.zeros_like, torch.ones(5), 5, 5, 0.01)
    assert found.eigenvalues.tolist() == [0.0]
    assert found.residuals.tolist() == [0.0]


def test_the_trace_is_within_its_standard_error_and_exact_of_a_diagonal(matrix):
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(len(KNOWN)).double()
    found = trace(lambda v: v @ matrix, like, 100, generator)
    assert abs(found.value - float(KNOWN.sum())) < 4 * found.standard_error
    exact = trace(lambda v: v * KNOWN, like, 7, generator)
    assert exact.value == pytest.approx(float(KNOWN.sum()))
    assert exact.standard_error == pytest.approx(0, abs=1e-9)


def test_the_density_has_mass_one_where_the_eigenvalues_are(matrix, start):
    found = lanczos(lambda v: v @ matrix, start, len(KNOWN), 5, 0.0)
    points = np.linspace(-10, 60, 20001)
    curve = density(found.eigenvalues, found.weights, points, width=0.1)
    assert np.trapezoid(curve, points) == pytest.approx(1, rel=1e-3)
    near_zero = np.abs(points - 0.5) < 1
    assert np.trapezoid(curve[near_zero], points[near_zero]) > 0.5
