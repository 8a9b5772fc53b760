"""Six rounds of every method against an independent numpy program, in float64.

Partial participation, uneven local steps, noisy minibatches and a learning rate that changes from round
to round: each of them is where some released code differs from its paper.
"""

import dataclasses
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy_reference import METHODS, Federation, Outcome, fedavg
from quadratics import State, begin, federation, states, train

from rayfl.algorithms import ALGORITHMS, Algorithm

WMSAM = {"rho": 0.2, "alpha": 0.3, "ema": 0.3}
CASES = {
    "fedavg": ("fedavg", {}),
    "fedavg-server_lr": ("fedavg", {"server_lr": 0.7}),
    "fedavgm": ("fedavgm", {"gamma": 0.8}),
    "fedcm": ("fedcm", {"alpha": 0.3}),
    "fedcm-server_lr": ("fedcm", {"alpha": 0.3, "server_lr": 0.7}),
    "scaffold": ("scaffold", {}),
    "scaffold-server_lr": ("scaffold", {"server_lr": 0.7}),
    "fedsam": ("fedsam", {"rho": 0.2}),
    "fedsam-server_lr": ("fedsam", {"rho": 0.2, "server_lr": 0.7}),
    "fednsam": ("fednsam", {"gamma": 0.8, "rho": 0.2}),
    "fednsam_momentum": ("fednsam_momentum", {"gamma": 0.8, "rho": 0.2}),
    "fedwmsam": ("fedwmsam", WMSAM),
    "fedwmsam-no_control_variates": ("fedwmsam", WMSAM | {"control_variates": False}),
    "fedwmsam-fixed_alpha": ("fedwmsam", WMSAM | {"adaptive": False}),
    "fedwmsam-ahead": ("fedwmsam", WMSAM | {"perturb_sign": -1}),
    "fedwmsam-lr_scale": ("fedwmsam", WMSAM | {"lookahead_scale": "lr"}),
    "fedwmsam-half_scale": ("fedwmsam", WMSAM | {"lookahead_scale": 0.5}),
    "fedwmsam-tight_alpha": ("fedwmsam", WMSAM | {"alpha_min": 0.4, "alpha_max": 0.5}),
    "fedwmsam-server_lr": ("fedwmsam", WMSAM | {"server_lr": 0.7}),
}
LOCAL = {"plain": {}, "decay": {"wd": 0.1}, "clip": {"C": 1.5}, "both": {"wd": 0.1, "C": 1.5}}


def compare(algorithm: Algorithm, f: Federation, outcomes: Iterator[Outcome]) -> None:
    for state, outcome in zip(states(algorithm, f), outcomes, strict=True):
        check(state, outcome)


def check(state: State, expected: Outcome) -> None:
    """w, every server state and every client's memory, to 1e-9."""
    equal(state.w, expected.x)
    assert state.server.keys() == expected.server.keys()
    for name, value in expected.server.items():
        equal(state.server[name], np.atleast_1d(value))
    for i, memory in enumerate(state.memories):
        assert memory.keys() == expected.memories.keys()
        for name, rows in expected.memories.items():
            equal(memory[name], rows[i])


def equal(tensor: torch.Tensor, array: np.ndarray) -> None:
    assert tensor.dtype == torch.float64
    np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-9, atol=1e-9)


def last(outcomes) -> Outcome:
    *_, outcome = outcomes
    return outcome


def test_every_method_has_a_reference():
    assert METHODS.keys() == ALGORITHMS.keys() == {name for name, _ in CASES.values()}


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_numpy_reference_after_every_round(case, local):
    (name, options), f = CASES[case], federation(**LOCAL[local])
    compare(ALGORITHMS[name](**options), f, METHODS[name](f, **options))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_defaults_equal_the_numpy_reference(name):
    default, f = ALGORITHMS[name](), federation(wd=1e-3, C=10.0)
    compare(default, f, METHODS[name](f, **dataclasses.asdict(default)))


def test_the_comparison_can_fail():
    """Every two cases and every two local settings lead to parameters that differ visibly."""
    ends = {
        (case, local): last(METHODS[name](federation(**settings), **options)).x
        for case, (name, options) in CASES.items()
        for local, settings in LOCAL.items()
    }
    closest = min(np.abs(a - b).max() for a, b in combinations(ends.values(), 2))
    assert closest > 1e-4
    f = federation()
    with pytest.raises(AssertionError):
        compare(ALGORITHMS["fedcm"](alpha=0.3), f, METHODS["fedcm"](f, alpha=0.300001))


def test_the_clip_is_active_in_some_steps_only():
    f = federation(C=1.5)
    norms = [
        np.linalg.norm(f.gradient(r, i, 0, outcome.x))
        for r, outcome in enumerate(fedavg(f))
        for i in range(f.N)
    ]
    assert min(norms) < 1.5 < max(norms)


def test_the_reference_itself_equals_a_closed_form():
    """One client, f(y) = a/2 (y - b)^2 and K steps: y_K = b + (1 - eta a)^K (x - b), four rounds of it."""
    a, b, x, K, eta = 0.7, 3.0, -1.0, 5, 0.2
    f = Federation(
        A=np.full((1, 1, 1), a),
        b=np.full((4, 1, K, 1), b),
        x0=np.array([x]),
        cohorts=((0,),) * 4,
        K=(K,),
        eta=(eta,) * 4,
    )
    assert last(fedavg(f)).x == pytest.approx(b + (1 - eta * a) ** (4 * K) * (x - b), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_backward_passes_are_those_of_the_paper(case):
    """SAM takes two a step; the momentum-guided perturbations take one, which is their headline claim."""
    (name, options), f = CASES[case], federation()
    method = ALGORITHMS[name](**options)
    trained = train(method, f, 0, begin(method, f, torch.float64), (0, 1, 2))
    assert trained.backward_passes == sum(f.K) * (2 if name in ("fedsam", "fednsam") else 1)
