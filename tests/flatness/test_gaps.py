"""Gaps of a quadratic, where all of them are known, and of a network that is rescaled."""

import math

import pytest
import torch
from nets import rescaled, small_objective
from quadratic import Quadratic

from rayfl.flatness.gaps import (
    EUCLIDEAN,
    Geometry,
    average_gap,
    euclidean_noise,
    filter_noise,
    sam_gaps,
    worst_gaps,
)
from rayfl.flatness.measures import Effort, measure_gaps, measure_hessian


@pytest.fixture
def quadratic():
    return Quadratic.random(40, seed=0)


def test_the_gap_along_the_gradient_is_its_formula(quadratic):
    _, g = quadratic.gradient()
    u = g / g.norm()
    expected = [rho * g.norm() + rho**2 / 2 * (u @ quadratic.H @ u) for rho in (0.01, 0.5)]
    assert sam_gaps(quadratic, g, (0.01, 0.5)) == pytest.approx(list(map(float, expected)))


def test_the_scale_free_gap_is_that_of_adaptive_sam(quadratic):
    _, g = quadratic.gradient()
    T = quadratic.w.abs()
    e = 0.3 * T**2 * g / (T * g).norm()
    expected = float(g @ e + e @ quadratic.H @ e / 2)
    geometry = Geometry.scale_free(quadratic.w)
    assert geometry.size(e) == pytest.approx(0.3)
    assert sam_gaps(quadratic, g, (0.3,), geometry) == pytest.approx([expected])


def largest_rise(g, H, rho):
    """The maximum of g'e + e'He/2 over ||e|| <= rho for a convex H: e = (mu - H)^-1 g, by bisection."""
    values, vectors = torch.linalg.eigh(H)
    b = vectors.T @ g
    low = float(values[-1]) + 1e-12
    high = low + float(g.norm()) / rho + 1
    for _ in range(200):
        mu = (low + high) / 2
        if (b / (mu - values)).norm() > rho:
            low = mu
        else:
            high = mu
    e = b / (high - values)
    return float(b @ e + (values * e * e).sum() / 2)


@pytest.mark.parametrize("rho", [0.01, 0.3])
def test_the_ascent_comes_near_the_worst_case_and_never_above(quadratic, rho):
    _, g = quadratic.gradient()
    found, worst = worst_gaps(quadratic, g, [rho, 2 * rho])[0], largest_rise(g, quadratic.H, rho)
    assert sam_gaps(quadratic, g, (rho,))[0] <= found <= worst * (1 + 1e-9)
    assert found >= 0.95 * worst


def test_the_scale_free_ascent_is_the_ascent_in_scaled_coordinates(quadratic):
    _, g = quadratic.gradient()
    T = quadratic.w.abs()
    worst = largest_rise(T * g, T[:, None] * quadratic.H * T, 0.3)
    found = worst_gaps(quadratic, g, [0.1, 0.3], Geometry.scale_free(quadratic.w))[1]
    assert 0.95 * worst <= found <= worst * (1 + 1e-9)


def test_noise_rises_by_half_its_size_times_the_trace(quadratic):
    generator, P = torch.Generator().manual_seed(0), len(quadratic.w)
    found = average_gap(quadratic, lambda: euclidean_noise(quadratic.w, 0.5, generator), draws=400)
    expected = 0.25 / (2 * P) * float(quadratic.H.trace())
    assert abs(found.value - expected) < 4 * found.standard_error
    assert (
        found.standard_error < 0.05 * expected
    )  # the slope, ten times as large, has cancelled out


def test_noise_has_the_part_rho_of_each_filter_and_spares_biases():
    objective, tensors = small_objective()
    noise = filter_noise(objective.w, tensors, 0.1, torch.Generator().manual_seed(0))
    for info in tensors:
        w, e = info.view(objective.w), info.view(noise)
        if len(info.shape) == 1:
            assert not e.any()
        else:
            torch.testing.assert_close(e.flatten(1).norm(dim=1), 0.1 * w.flatten(1).norm(dim=1))


def test_no_gradient_is_no_direction():
    flat = Quadratic(torch.eye(3).double(), torch.zeros(3).double(), torch.zeros(3).double())
    _, g = flat.gradient()
    assert sam_gaps(flat, g, (0.1,)) == [0.0]
    assert math.isfinite(worst_gaps(flat, g, [0.1])[0])
    assert EUCLIDEAN.gradient_norm(g) == 0


def test_scale_free_numbers_stay_where_a_relu_network_is_rescaled():
    """Layer by layer, up and down again: ||w|| and the Euclidean numbers change, the function does not."""
    effort = Effort(draws=4, lanczos_steps=300)
    objective, tensors = small_objective()
    again = rescaled(objective, tensors, 3.0)
    before, after = (
        measure_gaps(o, tensors, effort).metrics | measure_hessian(o, effort).metrics
        for o in (objective, again)
    )
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-12)
    free = {name for name in before if name.startswith("scale_free/")}
    # Noise of the trace is one of signs in either coordinates, and so the same.
    assert {n: after[n] for n in free} == pytest.approx({n: before[n] for n in free}, rel=1e-6)
    for name in ("gap_0.1", "worst_gap_0.1", "lambda1", "gradient_norm", "trace"):
        assert after[name] != pytest.approx(before[name], rel=0.05)
