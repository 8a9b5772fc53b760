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
from conftest import each, rarely
from numpy_reference import METHODS, PAPER, Federation, Outcome, fedavg
from quadratics import State, begin, federation, problem, states, train

from rayfl.algorithms import ALGORITHMS, Algorithm

WMSAM = {"rho": 0.2, "alpha": 0.3, "ema": 0.3}
LAST_UPDATE = {"rho": 0.4, "estimate": "last_update"}
ADAPTIVE = {"server_lr": 0.2, "beta1": 0.6, "tau": 0.05}
ADAM = {"beta1": 0.6, "beta2": 0.8, "epsilon": 1e-3}
MUON = ADAM | {"gamma": 0.3, "beta": 0.7}
GF = {"rho": 0.3, "rho_global": 0.4, "threshold": 0.45, "window": 3}
GMT = {"lam": 0.3, "alpha": 0.6, "gamma": 0.8, "tau": 1.5}
WSAM = {"alpha": 0.4, "rho": 0.3, "gamma": 0.6}
GLOSS = {"lam": 0.3, "rho": 0.3, "rho_local": 0.2}
TWO_PASSES = {"fedasam", "fedgamma", "fedgf", "fedgloss", "fednsam", "fedsam", "fedsmoo"}
TWO_PASSES |= {"ditto", "fedspeed", "fedwsam", "mofedsam", "asyncsam", "fedsol"}
# Their global models are FedAvg's, or stay where they begin: all that is their own is in the memories.
OWN_MODELS = {"centralised", "ditto", "local"}
ONE_PASS_FIRST = {"fedsol"}  # in a round's first step
CASES = {
    "fedavg": ("fedavg", {}),
    "fedavg-server_lr": ("fedavg", {"server_lr": 0.7}),
    "centralised": ("centralised", {}),
    "local": ("local", {}),
    "ditto": ("ditto", {"lam": 0.4}),
    "ditto-server_lr": ("ditto", {"lam": 0.4, "server_lr": 0.7}),
    "fedper": ("fedper", {"head": ""}),
    "fedper-head": ("fedper", {"head": "0"}),
    "fedper-server_lr": ("fedper", {"head": "", "server_lr": 0.7}),
    "fedrep": ("fedrep", {"head": "", "head_share": 0.5}),
    "fedrep-head_share": ("fedrep", {"head": "0", "head_share": 0.3}),
    "fednova": ("fednova", {}),
    "fednova-server_lr": ("fednova", {"server_lr": 0.7}),
    "fedexp": ("fedexp", {"epsilon": 0.01}),
    "fedexp-server_lr": ("fedexp", {"epsilon": 0.01, "server_lr": 0.7}),
    "fedavgm": ("fedavgm", {"gamma": 0.8}),
    "fedavgm-server_lr": ("fedavgm", {"gamma": 0.8, "server_lr": 0.7}),
    "fedcm": ("fedcm", {"alpha": 0.3}),
    "fedcm-server_lr": ("fedcm", {"alpha": 0.3, "server_lr": 0.7}),
    "scaffold": ("scaffold", {}),
    "scaffold-server_lr": ("scaffold", {"server_lr": 0.7}),
    "fedsam": ("fedsam", {"rho": 0.2}),
    "fedsam-server_lr": ("fedsam", {"rho": 0.2, "server_lr": 0.7}),
    "fedgf": ("fedgf", GF),
    "fedgf-threshold": ("fedgf", GF | {"threshold": 0.6}),
    "fedgf-server_lr": ("fedgf", GF | {"server_lr": 0.7}),
    "asyncsam": ("asyncsam", {"rho": 0.4}),
    "asyncsam-tau_0": ("asyncsam", {"rho": 0.4, "tau": 0}),
    "asyncsam-tau_2": ("asyncsam", {"rho": 0.4, "tau": 2}),
    "asyncsam-ascent_samples": ("asyncsam", {"rho": 0.4, "ascent_samples": 1}),
    "asyncsam-server_lr": ("asyncsam", {"rho": 0.4, "server_lr": 0.7}),
    "fednsam": ("fednsam", {"gamma": 0.8, "rho": 0.2}),
    "fednsam-server_lr": ("fednsam", {"gamma": 0.8, "rho": 0.2, "server_lr": 0.7}),
    "fednsam_momentum": ("fednsam_momentum", {"gamma": 0.8, "rho": 0.2}),
    "fednsam_momentum-server_lr": (
        "fednsam_momentum",
        {"gamma": 0.8, "rho": 0.2, "server_lr": 0.7},
    ),
    "fedwmsam": ("fedwmsam", WMSAM),
    "fedwmsam-no_control_variates": ("fedwmsam", WMSAM | {"control_variates": False}),
    "fedwmsam-fixed_alpha": ("fedwmsam", WMSAM | {"adaptive": False}),
    "fedwmsam-uphill": ("fedwmsam", WMSAM | {"perturb_towards": "uphill"}),
    "fedwmsam-scale_1": ("fedwmsam", WMSAM | {"lookahead_scale": 1.0}),
    "fedwmsam-released_sign": ("fedwmsam", WMSAM | {"perturb_towards": "released"}),
    "fedwmsam_released-predicted": (
        "fedwmsam_released",
        WMSAM | {"perturb_towards": "predicted"},
    ),
    "fedwmsam-uphill-lr_scale": (
        "fedwmsam",
        WMSAM | {"perturb_towards": "uphill", "lookahead_scale": "lr"},
    ),
    "fedwmsam-half_scale": ("fedwmsam", WMSAM | {"lookahead_scale": 0.5}),
    "fedwmsam-tight_alpha": ("fedwmsam", WMSAM | {"alpha_min": 0.4, "alpha_max": 0.5}),
    "fedwmsam-server_lr": ("fedwmsam", WMSAM | {"server_lr": 0.7}),
    "fedwmsam_released-momentum_factor": (
        "fedwmsam_released",
        WMSAM | PAPER | {"momentum_factor": 0.8},
    ),
    "fedwmsam-raw_cosine": ("fedwmsam", WMSAM | {"raw_cosine": True}),
    "fedwmsam_released-sum_of_norms": (
        "fedwmsam_released",
        WMSAM | PAPER | {"perturbation": "sum_of_norms"},
    ),
    "fedwmsam_released-scalars": ("fedwmsam_released", WMSAM | PAPER | {"perturbation": "scalars"}),
    "fedwmsam_released-nominal_steps": (
        "fedwmsam_released",
        WMSAM | PAPER | {"nominal_steps": True},
    ),
    "fedwmsam_released-adapt_at_zero": (
        "fedwmsam_released",
        WMSAM | PAPER | {"adapt_at_zero": True},
    ),
    "fedwmsam_released": ("fedwmsam_released", WMSAM),
    "fednsam-released_server": (
        "fednsam",
        {"gamma": 0.8, "rho": 0.2, "released_server": True},
    ),
    "fednsam-released_server-server_lr": (
        "fednsam",
        {"gamma": 0.8, "rho": 0.2, "released_server": True, "server_lr": 0.7},
    ),
    "mofedsam": ("mofedsam", {"alpha": 0.3, "rho": 0.2}),
    "mofedsam-server_lr": ("mofedsam", {"alpha": 0.3, "rho": 0.2, "server_lr": 0.7}),
    "fedwsam": ("fedwsam", WSAM),
    "fedwsam-coupled": ("fedwsam", WSAM | {"decoupled": False}),
    "fedwsam-without_momentum": ("fedwsam", WSAM | {"alpha": 1.0}),
    "fedwsam-server_lr": ("fedwsam", WSAM | {"server_lr": 0.7}),
    "fedgamma": ("fedgamma", {"rho": 0.2}),
    "fedgamma-server_lr": ("fedgamma", {"rho": 0.2, "server_lr": 0.7}),
    "fedprox": ("fedprox", {"mu": 0.5}),
    "fedprox-server_lr": ("fedprox", {"mu": 0.5, "server_lr": 0.7}),
    "feddyn": ("feddyn", {"lam": 0.3}),
    "feddyn-server_lr": ("feddyn", {"lam": 0.3, "server_lr": 0.7}),
    "fedsol": ("fedsol", {"rho": 3.0}),
    "fedsol-server_lr": ("fedsol", {"rho": 3.0, "server_lr": 0.7}),
    "fedsol-fixed": ("fedsol", {"rho": 0.4, "strength": "fixed"}),
    "fedsol-temperature": ("fedsol", {"rho": 3.0, "temperature": 0.7}),
    "fedspeed": ("fedspeed", {"lam": 0.3, "rho": 0.2}),
    "fedspeed-server_lr": ("fedspeed", {"lam": 0.3, "rho": 0.2, "server_lr": 0.7}),
    "fedgloss": ("fedgloss", GLOSS),
    "fedgloss-sgd": ("fedgloss", GLOSS | {"rho_local": 0.0}),
    "fedgloss-server_lr": ("fedgloss", GLOSS | {"server_lr": 0.7}),
    "fedgmt": ("fedgmt", GMT),
    "fedgmt-active": ("fedgmt", GMT | {"duals": "active"}),
    "fedgmt-server_lr": ("fedgmt", GMT | {"server_lr": 0.7}),
    "fedgmt-active-server_lr": ("fedgmt", GMT | {"duals": "active", "server_lr": 0.7}),
    "fedsmoo": ("fedsmoo", {"lam": 0.3, "rho": 0.2}),
    "fedsmoo-server_lr": ("fedsmoo", {"lam": 0.3, "rho": 0.2, "server_lr": 0.7}),
    "fedlesam": ("fedlesam", {"rho": 0.4}),
    "fedlesam-last_update": ("fedlesam", LAST_UPDATE),
    "fedlesam-server_lr": ("fedlesam", {"rho": 0.4, "server_lr": 0.7}),
    "fedlesam-last_update-server_lr": ("fedlesam", LAST_UPDATE | {"server_lr": 0.7}),
    "fedlesam_s": ("fedlesam_s", {"rho": 0.4}),
    "fedlesam_s-last_update": ("fedlesam_s", LAST_UPDATE),
    "fedlesam_s-weak": ("fedlesam_s", {"rho": 0.4, "correction": 0.1}),
    "fedlesam_s-server_lr": ("fedlesam_s", {"rho": 0.4, "server_lr": 0.7}),
    "fedlesam_d": ("fedlesam_d", {"rho": 0.4, "lam": 0.3}),
    "fedlesam_d-server_lr": ("fedlesam_d", {"rho": 0.4, "lam": 0.3, "server_lr": 0.7}),
    "fedlesam_d-last_update": ("fedlesam_d", LAST_UPDATE | {"lam": 0.3}),
    "fedinit": ("fedinit", {"beta": 0.4}),
    "fedinit-server_lr": ("fedinit", {"beta": 0.4, "server_lr": 0.7}),
    "fedinit-update_from_client": ("fedinit", {"beta": 0.4, "update_from": "client"}),
    "fedacg": ("fedacg", {"gamma": 0.8, "beta": 0.3}),
    "fedacg-server_lr": ("fedacg", {"gamma": 0.8, "beta": 0.3, "server_lr": 0.7}),
    "fednesterov": ("fednesterov", {"gamma": 0.8}),
    "fednesterov-server_lr": ("fednesterov", {"gamma": 0.8, "server_lr": 0.7}),
    "fedadam": ("fedadam", ADAPTIVE | {"beta2": 0.8}),
    "fedyogi": ("fedyogi", ADAPTIVE | {"beta2": 0.8}),
    "fedadagrad": ("fedadagrad", ADAPTIVE),
    "fedasam": ("fedasam", {"rho": 0.5, "eta": 0.2}),
    "fedasam-server_lr": ("fedasam", {"rho": 0.5, "eta": 0.2, "server_lr": 0.7}),
    "fedswa": ("fedswa", {"rho": 0.2, "server_lr": 1.3}),
    "fedmoswa": ("fedmoswa", {"rho": 0.2, "server_lr": 1.3, "gamma": 0.3}),
    "igfl": ("igfl", {"gamma": 0.7}),
    "igfl-server_lr": ("igfl", {"gamma": 0.7, "server_lr": 0.7}),
    "local_adamw": ("local_adamw", ADAM),
    "local_adamw-server_lr": ("local_adamw", ADAM | {"server_lr": 0.7}),
    "fedadamw": ("fedadamw", ADAM | {"gamma": 0.3}),
    "fedadamw-server_lr": ("fedadamw", ADAM | {"gamma": 0.3, "server_lr": 0.7}),
    "fedlada": ("fedlada", ADAM | {"alpha": 0.3}),
    "fedlada-server_lr": ("fedlada", ADAM | {"alpha": 0.3, "server_lr": 0.7}),
    "fedmuon": ("fedmuon", MUON),
    "fedmuon-nesterov": ("fedmuon", MUON | {"momentum": "nesterov"}),
    "fedmuon-tall": ("fedmuon", MUON | {"tall": True}),
    "fedmuon-matrix_lr": ("fedmuon", MUON | {"matrix_lr": 0.5}),
    "fedmuon-server_lr": ("fedmuon", MUON | {"server_lr": 0.7}),
    "moon": ("moon", {"mu": 2.0, "tau": 0.4}),
    "moon-server_lr": ("moon", {"mu": 2.0, "tau": 0.4, "server_lr": 0.7}),
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


@pytest.mark.parametrize("local", ["both", *rarely(["plain", "decay", "clip"])])
@each(case=CASES)
def test_equals_the_numpy_reference_after_every_round(case, local):
    (name, options) = case
    f = problem(name, **LOCAL[local])
    compare(ALGORITHMS[name](**options), f, METHODS[name](f, **options))


@each(name=ALGORITHMS.keys())
def test_the_defaults_equal_the_numpy_reference(name):
    default, f = ALGORITHMS[name](), problem(name, wd=1e-3, C=10.0)
    compare(default, f, METHODS[name](f, **dataclasses.asdict(default)))


def test_the_comparison_can_fail():
    """Every two cases and every two local settings lead to parameters that differ visibly."""
    ends = {
        (case, local): last(METHODS[name](problem(name, **settings), **options)).x
        for case, (name, options) in CASES.items()
        if name not in OWN_MODELS
        for local, settings in LOCAL.items()
    }
    pairs = ((a, b) for a, b in combinations(ends.values(), 2) if a.shape == b.shape)
    closest = min(np.abs(a - b).max() for a, b in pairs)
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
        apart=np.zeros((4, 1, K, 1)),
        x0=np.array([x]),
        cohorts=((0,),) * 4,
        K=(K,),
        eta=(eta,) * 4,
    )
    assert last(fedavg(f)).x == pytest.approx(b + (1 - eta * a) ** (4 * K) * (x - b), abs=1e-12)


@each(case=CASES)
def test_backward_passes_are_those_of_the_paper(case):
    """SAM takes two a step; the momentum-guided perturbations take one, which is their headline claim."""
    (name, options) = case
    f = problem(name)
    method = ALGORITHMS[name](**options)
    trained = train(method, f, 0, begin(method, f, torch.float64), (0, 1, 2))
    two = name in TWO_PASSES and options.get("rho_local") != 0
    first = len(f.K) if name in ONE_PASS_FIRST else 0
    assert trained.backward_passes == sum(f.K) * (2 if two else 1) - first
