"""Planes through a point: what is on them, and which they are."""

import numpy as np
import pytest
import torch
from nets import rescaled, small_objective
from quadratic import Quadratic

from rayfl.flatness.landscape import landscape, principal_directions, random_directions


def test_the_grid_has_the_losses_of_its_points():
    quadratic = Quadratic.random(10, seed=0)
    directions = torch.randn(2, 10, dtype=torch.double)
    moves = 0.3 * directions[0] - 0.1 * directions[1]
    found = landscape(quadratic, directions, 0.5, 5, moves[None])
    assert found.losses.shape == (5, 5)
    assert found.x.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    there = quadratic.w + 0.25 * directions[0] - 0.5 * directions[1] - quadratic.c
    assert found.losses[0, 3] == pytest.approx(float(there @ quadratic.H @ there / 2))
    np.testing.assert_allclose(found.points, [[0.3, -0.1]])


def test_a_rescaled_network_has_the_same_random_plane():
    """Of the weights, that is: with biases at 0 the loss is the same at each point."""
    objective, tensors = small_objective()
    again = rescaled(objective, tensors, 3.0)
    planes = [
        landscape(o, random_directions(o.w, tensors), 1.0, 3, torch.zeros(1, len(o.w)))
        for o in (objective, again)
    ]
    np.testing.assert_allclose(planes[1].losses, planes[0].losses, rtol=1e-9)


def test_principal_directions_are_orthonormal_and_hold_two_moves():
    torch.manual_seed(0)
    plane = torch.randn(2, 20)
    moves = torch.randn(5, 2) @ plane
    found = principal_directions(moves)
    torch.testing.assert_close(found @ found.T, torch.eye(2), atol=1e-5, rtol=0)
    inside = moves @ found.T @ found
    torch.testing.assert_close(inside, moves, atol=1e-4, rtol=1e-4)
