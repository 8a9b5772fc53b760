"""Methods whose formulas become another's give its results; invariants of every round hold.

The identities hold bit for bit on noisy quadratics in float64 and on a small network in float32, unless
a comment says why they cannot.
"""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import rarely
from quadratics import Minibatch, Quadratic, client_context, federation, info, last, states
from torch import Tensor

from rayfl import models
from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.base import (
    Batch,
    ClientContext,
    ExperimentInfo,
    Loss,
    ServerContext,
    TensorInfo,
    Vectors,
)
from rayfl.data.partition import split
from rayfl.data.schemes import Dirichlet
from rayfl.data.sources import Digits
from rayfl.models.mlp import MLP
from rayfl.training.engine import Engine
from rayfl.training.flat import Layout
from rayfl.training.settings import LocalSettings
from rayfl.training.shortcuts import Shortcuts
from rayfl.training.units import Broadcast, WorkUnit

INFO = ExperimentInfo((4,) * 4, 2, 1, None, (TensorInfo("w", torch.Size([3]), 0),))
FEDCM_LIKE = {"rho": 0.0, "control_variates": False, "adaptive": False}


class Identity(NamedTuple):
    """Two methods that must agree."""

    left: Algorithm
    right: Algorithm


def method(name: str, **options) -> Algorithm:
    return ALGORITHMS[name](**options)


EXACT = {
    "fedavgm gamma=0 is fedavg": Identity(method("fedavgm", gamma=0.0), method("fedavg")),
    "fedexp with a large epsilon is fedavg": Identity(
        method("fedexp", epsilon=1e6), method("fedavg")
    ),
    "fedcm alpha=1 is fedavg": Identity(method("fedcm", alpha=1.0), method("fedavg")),
    "fedsam rho=0 is fedavg": Identity(method("fedsam", rho=0.0), method("fedavg")),
    "asyncsam tau=0 is fedsam": Identity(
        method("asyncsam", tau=0, rho=0.1), method("fedsam", rho=0.1)
    ),
    "asyncsam rho=0 is fedavg": Identity(method("asyncsam", rho=0.0, tau=2), method("fedavg")),
    "fedgf with a large threshold is fedsam": Identity(
        method("fedgf", rho=0.1, threshold=1e9), method("fedsam", rho=0.1)
    ),
    "asyncsam of more samples than there are": Identity(
        method("asyncsam", rho=0.1, ascent_samples=1000), method("asyncsam", rho=0.1)
    ),
    "fednsam gamma=0 is fedsam": Identity(
        method("fednsam", gamma=0.0, rho=0.1), method("fedsam", rho=0.1)
    ),
    "fednsam gamma=rho=0 is fedavg": Identity(
        method("fednsam", gamma=0.0, rho=0.0), method("fedavg")
    ),
    "fednsam_momentum gamma=rho=0 is fedavg": Identity(
        method("fednsam_momentum", gamma=0.0, rho=0.0), method("fedavg")
    ),
    "fedwmsam without its parts is fedcm": Identity(
        # A weight without rounding error: fedwmsam's is a float32 tensor, fedcm's a Python float.
        method("fedwmsam", alpha=0.25, **FEDCM_LIKE),
        method("fedcm", alpha=0.25),
    ),
    "fedwmsam rho=0 alpha=1 is scaffold": Identity(
        method("fedwmsam", rho=0.0, alpha=1.0, adaptive=False), method("scaffold")
    ),
    "fedwmsam alpha=1 without its parts is fedavg": Identity(
        method("fedwmsam", alpha=1.0, **FEDCM_LIKE), method("fedavg")
    ),
    "mofedsam rho=0 is fedcm": Identity(
        method("mofedsam", alpha=0.3, rho=0.0), method("fedcm", alpha=0.3)
    ),
    "mofedsam alpha=1 is fedsam": Identity(
        method("mofedsam", alpha=1.0, rho=0.1), method("fedsam", rho=0.1)
    ),
    "fedwsam gamma=0 is fedavg": Identity(method("fedwsam", gamma=0.0), method("fedavg")),
    "fedwsam gamma=0 with momentum is fedcm": Identity(
        method("fedwsam", gamma=0.0, alpha=0.3), method("fedcm", alpha=0.3)
    ),
    "fedwsam coupled gamma=0 is fedcm": Identity(
        method("fedwsam", gamma=0.0, alpha=0.3, decoupled=False), method("fedcm", alpha=0.3)
    ),
    "fedwsam gamma=1/2 is fedsam": Identity(
        method("fedwsam", gamma=0.5, rho=0.1), method("fedsam", rho=0.1)
    ),
    "fedwsam coupled gamma=1/2 is mofedsam": Identity(
        method("fedwsam", gamma=0.5, rho=0.1, alpha=0.3, decoupled=False),
        method("mofedsam", rho=0.1, alpha=0.3),
    ),
    "fedwsam without momentum is one method": Identity(
        method("fedwsam", decoupled=True), method("fedwsam", decoupled=False)
    ),
    "fedgamma rho=0 is scaffold": Identity(method("fedgamma", rho=0.0), method("scaffold")),
    "fedinit beta=0 is fedavg": Identity(method("fedinit", beta=0.0), method("fedavg")),
    "fedprox mu=0 is fedavg": Identity(method("fedprox", mu=0.0), method("fedavg")),
    "fedsol rho=0 is fedavg": Identity(method("fedsol", rho=0.0), method("fedavg")),
    "fedspeed rho=0 is feddyn": Identity(method("fedspeed", rho=0.0), method("feddyn")),
    "fedgloss rho=rho_local=0 is feddyn": Identity(
        method("fedgloss", rho=0.0, rho_local=0.0), method("feddyn")
    ),
    "fedgloss rho=0 is fedspeed": Identity(
        method("fedgloss", rho=0.0, rho_local=0.2), method("fedspeed", rho=0.2)
    ),
    "fedsmoo rho=0 is feddyn": Identity(method("fedsmoo", rho=0.0), method("feddyn")),
    "fedlesam rho=0 is fedavg": Identity(method("fedlesam", rho=0.0), method("fedavg")),
    "fedlesam last_update rho=0 is fedavg": Identity(
        method("fedlesam", rho=0.0, estimate="last_update"), method("fedavg")
    ),
    "fedlesam_s rho=0 is scaffold": Identity(method("fedlesam_s", rho=0.0), method("scaffold")),
    "fedlesam_s correction=0 is fedlesam": Identity(
        method("fedlesam_s", correction=0.0), method("fedlesam")
    ),
    "fedlesam_d rho=0 is feddyn": Identity(method("fedlesam_d", rho=0.0), method("feddyn")),
    "fednesterov gamma=0 is fedavg": Identity(method("fednesterov", gamma=0.0), method("fedavg")),
    "fednsam rho=0 is fednesterov": Identity(method("fednsam", rho=0.0), method("fednesterov")),
    "fedacg beta=0 is fednesterov": Identity(method("fedacg", beta=0.0), method("fednesterov")),
    "fedacg gamma=0 is fedprox": Identity(
        method("fedacg", gamma=0.0, beta=0.3), method("fedprox", mu=0.3)
    ),
    "fednsam released_server gamma=0 is fedsam": Identity(
        method("fednsam", gamma=0.0, rho=0.1, released_server=True), method("fedsam", rho=0.1)
    ),
    "fedasam rho=0 is fedavg": Identity(method("fedasam", rho=0.0), method("fedavg")),
    "igfl gamma=0 is fedavg": Identity(method("igfl", gamma=0.0), method("fedavg")),
    "moon mu=0 is fedavg": Identity(method("moon", mu=0.0), method("fedavg")),
    # beta2 = 0: v is the square of the last gradient, whatever it starts from.
    "fedadamw gamma=beta2=0 is local_adamw beta2=0": Identity(
        method("fedadamw", gamma=0.0, beta2=0.0), method("local_adamw", beta2=0.0)
    ),
    "fedmuon nesterov beta=0 is heavy_ball beta=0": Identity(
        method("fedmuon", momentum="nesterov", beta=0.0), method("fedmuon", beta=0.0)
    ),
    "fedswa rho=server_lr=1 is fedavg": Identity(
        method("fedswa", rho=1.0, server_lr=1.0), method("fedavg")
    ),
}


@cache
def digits() -> Engine:
    """An engine for a small network on real digits, for 6 unlike clients with unequal numbers of steps."""
    data = Digits().load()
    partition = split(Dirichlet(alpha=0.3), data.y_train, clients=6, seed=0)
    model = models.build(MLP(hidden=(32,)), data.sample_shape, data.num_classes, seed=0)
    settings = LocalSettings(
        seed=0,
        batch_size=50,
        local_epochs=1,
        local_steps=None,
        weight_decay=1e-3,
        precision="float32",
        clip_norm=1.0,
        augment="none",
        straggler_prob=0.5,
        stack=None,
        cuda_graphs=True,
        shortcuts=Shortcuts(dense=True),
    )
    return Engine(model, method("fedavg"), data, partition, settings, "cpu")


def network(algorithm: Algorithm, cohorts=((0, 3, 4), (1, 3, 5), (0, 1, 2)), N: int = 6) -> Tensor:
    """w after these rounds of the engine."""
    engine, memories = digits(), {}
    w, buffers = Layout(engine.model).flatten(engine.model)
    server = algorithm.init_server(w)
    for r, cohort in enumerate(cohorts):
        start, shared = algorithm.broadcast(w, server)
        sent = Broadcast(start.numpy(), {n: v.numpy() for n, v in shared.items()}, buffers.numpy())
        unit, lr = WorkUnit(r + 1, cohort, 0.2), 0.2
        with engine.following(algorithm):
            result, kept = engine.train(unit, sent, [memories.get(i) for i in cohort])
        memories |= dict(zip(cohort, kept, strict=True))
        mean = {n: torch.from_numpy(v) / len(cohort) for n, v in result.sums.items()}
        steps = float(result.steps.mean())
        ctx = ServerContext(lr=lr, steps=steps, participation=len(cohort) / N, round=r + 1)
        w, server = algorithm.server_step(w, server, mean, ctx)
    return w


@pytest.mark.parametrize("identity", EXACT.values(), ids=EXACT)
def test_reduces_bit_for_bit_on_quadratics(identity):
    f = federation(wd=0.01, C=5.0)
    for left, right in zip(states(identity.left, f), states(identity.right, f), strict=True):
        assert torch.equal(left.w, right.w)
        for name in left.server.keys() & right.server.keys():
            assert torch.equal(left.server[name], right.server[name])
        for mine, others in zip(left.memories, right.memories, strict=True):
            assert all(torch.equal(mine[name], others[name]) for name in mine.keys() & others)


@pytest.mark.parametrize("identity", EXACT.values(), ids=EXACT)
def test_reduces_bit_for_bit_on_a_network(identity):
    assert torch.equal(network(identity.left), network(identity.right))


def test_the_network_tells_the_methods_apart():
    """But for those whose global models are FedAvg's, or stay."""
    apart = ALGORITHMS.keys() - {"centralised", "ditto", "local"}
    ends = [network(ALGORITHMS[name]()) for name in sorted(apart)]
    for i, w in enumerate(ends):
        assert all((w - other).abs().max() > 1e-4 for other in ends[:i])


def test_fedwmsam_without_its_parts_is_fedcm_at_any_alpha():
    left, right = method("fedwmsam", alpha=0.1, **FEDCM_LIKE), method("fedcm", alpha=0.1)
    f = federation(wd=0.01, C=5.0)
    assert torch.equal(last(left, f).w, last(right, f).w)
    # In float32, 1 - alpha is rounded once more where alpha is a tensor.
    torch.testing.assert_close(network(left), network(right), rtol=1e-5, atol=1e-6)


def test_scaffold_of_one_client_is_fedavg():
    """c_i and c see the same changes, so the correction is exactly 0."""
    alone = federation(clients=1, K=(4,), cohorts=((0,),), wd=0.01, C=5.0)
    one, other = method("scaffold"), method("fedavg")
    assert torch.equal(last(one, alone).w, last(other, alone).w)
    everyone = {"cohorts": ((3,),) * 3, "N": 1}
    assert torch.equal(network(one, **everyone), network(other, **everyone))


def test_fedwmsam_perturbs_nothing_in_the_first_local_step():
    f = federation(K=(1, 1, 1))
    with_sam, without = method("fedwmsam", rho=0.5), method("fedwmsam", rho=0.0)
    assert torch.equal(last(with_sam, f).w, last(without, f).w)


def test_fednova_of_equally_many_steps_is_fedavg():
    """The unit of its uploads, 3.5 steps here, cancels but for rounding."""
    f = federation(K=(3, 3, 3), wd=0.01, C=5.0)
    for left, right in zip(states(method("fednova"), f), states(method("fedavg"), f), strict=True):
        torch.testing.assert_close(left.w, right.w, rtol=0, atol=1e-12)


def test_fednova_uploads_updates_of_one_length():
    """4 steps are those of `local_steps`: nothing is scaled. One step counts as four of its kind."""
    fixed = replace(INFO, local_epochs=None, local_steps=4)
    start, steps = torch.zeros(2, 3), torch.tensor([[4.0], [1.0]])
    ctx = client_context(start, {}, 0.1, steps, 4, 1, fixed)
    delta = torch.tensor([[0.1, -0.7, 0.3], [0.2, 0.3, -0.4]])
    uploads, _ = method("fednova").upload(delta, {}, ctx)
    assert torch.equal(uploads["delta"], torch.stack([delta[0], 4 * delta[1]]))
    assert torch.equal(uploads["tau"], steps / 4)


def test_fednova_minimises_the_mean_loss_whatever_the_clients_steps():
    """Up to the drift within a round, which falls with lr; FedAvg minimises another mean of the losses."""
    f = federation(rounds=400, noise=0.0, K=(8, 1, 2), cohorts=((0, 1, 2),))
    f = f._replace(eta=(0.01,) * 400)
    best = np.linalg.solve(f.A.sum(0), np.einsum("ipq,iq->p", f.A, f.b[0, :, 0]))
    nova, avg = (np.abs(last(method(n), f).w.numpy() - best).max() for n in ("fednova", "fedavg"))
    assert nova < 0.1 * avg


def test_fedexp_of_one_client_a_round_is_fedavg():
    """D is its D_i, and half of the ratio of their squares is less than 1."""
    f = federation(cohorts=((0,), (2,), (1,)), wd=0.01, C=5.0)
    for left, right in zip(states(method("fedexp"), f), states(method("fedavg"), f), strict=True):
        assert torch.equal(left.w, right.w)
        assert left.server["eta_g"].item() == 1


@pytest.mark.parametrize("clients", [1, 2, 3, 8])
def test_fedexp_of_clients_at_right_angles_steps_by_half_of_their_number(clients):
    """S equally long D_i: ||D||^2 is ||D_i||^2 / S."""
    fedexp, w = method("fedexp", epsilon=1e-12), torch.zeros(8, dtype=torch.float64)
    deltas = 3 * torch.eye(8, dtype=torch.float64)[:clients]
    ctx = client_context(torch.zeros_like(deltas), {}, 0.1, torch.ones(clients, 1), 1, 1, INFO)
    uploads, _ = fedexp.upload(deltas, {}, ctx)
    mean = {name: value.mean(0) for name, value in uploads.items()}
    end, server = fedexp.server_step(
        w, fedexp.init_server(w), mean, ServerContext(0.1, 1.0, 1.0, 1)
    )
    assert server["eta_g"].item() == pytest.approx(max(1.0, clients / 2))
    torch.testing.assert_close(end, max(1.0, clients / 2) * mean["delta"])


@pytest.mark.parametrize(("decoupled", "weight"), [(True, 4.0), (False, 0.25 * 4)])
def test_fedwsam_weighs_the_sharpness_by_kappa(decoupled, weight):
    """gamma = 0.8, so kappa = 4. The gradient is 2 at the start and rho / sqrt(3) more at y + e."""
    start = torch.zeros(1, 3, dtype=torch.float64)
    ctx = client_context(start, {"Delta": ZEROS}, 0.1, torch.tensor([[2.0]]), 0, 1, INFO)
    wsam = method("fedwsam", alpha=0.25, gamma=0.8, rho=0.3 * 3**0.5, decoupled=decoupled)
    direction, _ = wsam.local_step(start, {}, lambda x: x + 2, ctx)
    torch.testing.assert_close(direction, torch.full_like(start, 0.25 * 2 + weight * 0.3))


def test_fedgf_of_far_clients_takes_all_gradients_at_the_servers_point():
    """threshold = 0, so c = 1 from the second round on; the weight decay alone sees where a client is."""
    f = federation(rounds=3, cohorts=((0, 1), (1,), (0, 2)))
    *_, before, after = states(method("fedgf", rho_global=0.4, threshold=0.0), f)
    G = before.server["G"].numpy()
    w_p = before.w.numpy() + 0.4 * G / np.linalg.norm(G)
    path = np.mean([sum(f.gradient(2, i, k, w_p) for k in range(f.K[i])) for i in (0, 2)], axis=0)
    np.testing.assert_allclose((after.w - before.w).numpy(), -f.eta[2] * path, atol=1e-12)


@pytest.mark.parametrize("window", [1, 5, 24, 25, 60])
def test_fedgf_remembers_which_of_the_last_rounds_were_far(window):
    fedgf, w = method("fedgf", threshold=0.5, window=window), torch.zeros(3)
    server, rounds = fedgf.init_server(w), []
    for round, far in enumerate(np.random.default_rng(0).random(200) > 0.5, 1):
        rounds.append(int(far))
        mean = {"delta": ONES, "drift": torch.tensor([0.6 if far else 0.4])}
        w, server = fedgf.server_step(w, server, mean, ServerContext(0.1, 2.0, 1.0, round))
        assert server["c"].item() == pytest.approx(np.mean(rounds[-window:]))


def test_fedgmt_of_one_local_step_without_its_divergence_is_feddyn():
    """The proximal term that FedDyn has beyond it is 0 in the first step of a round."""
    f = federation(K=(1, 1, 1), wd=0.01, C=5.0)
    for left, right in zip(
        states(method("fedgmt", gamma=0.0, duals="all"), f),
        states(method("feddyn"), f),
        strict=True,
    ):
        assert torch.equal(left.w, right.w)
        assert torch.equal(left.server["h"], right.server["h"])


def test_fedgmt_corrects_alike_where_everybody_takes_part():
    """All clients are active then. One sums their dual variables, the other their updates."""
    f = federation(cohorts=((0, 1, 2),), wd=0.01, C=5.0)
    active, everyone = (method("fedgmt", duals=c) for c in ("active", "all"))
    for left, right in zip(states(active, f), states(everyone, f), strict=True):
        torch.testing.assert_close(left.w, right.w, rtol=0, atol=1e-12)


def test_fedgmt_near_its_own_start_has_no_divergence():
    """alpha = 0: e is w, where each client begins. Two softmaxes cancel there but for rounding."""
    f = federation(K=(1, 1, 1), wd=0.01, C=5.0)
    near, none = (last(method("fedgmt", alpha=0.0, gamma=g), f).w for g in (2.0, 0.0))
    torch.testing.assert_close(near, none, rtol=0, atol=1e-12)


def test_the_pull_of_fedgmt_is_the_slope_of_its_divergence():
    """By central differences, on one sample whose outputs are y - b."""
    rng = np.random.default_rng(0)
    b, y, e = rng.normal(size=(3, 5))
    gamma, tau = 0.8, 1.5

    def divergence(y: np.ndarray) -> float:
        p, q = (np.exp((v - b) / tau) / np.exp((v - b) / tau).sum() for v in (e, y))
        return gamma * tau**2 * float((p * np.log(p / q)).sum())

    steps = 1e-5 * np.eye(5)
    slope = [(divergence(y + s) - divergence(y - s)) / 2e-5 for s in steps]
    f = federation(clients=1, K=(1,), cohorts=((0,),))
    A = torch.zeros(1, 5, 5, dtype=torch.float64)
    batch = Minibatch(A, torch.tensor(b[None]), torch.zeros(1, 5, dtype=torch.float64))
    x, shared = torch.tensor(y[None]), {"e": torch.tensor(e)}
    ctx = client_context(x, shared, 0.1, torch.tensor([[1.0]]), 0, 1, info(f))
    pull, _ = method("fedgmt", gamma=gamma, tau=tau).local_step(
        x, {"h_i": torch.zeros_like(x)}, lambda at, p: Quadratic()(at, batch, Loss(p))[0], ctx
    )
    np.testing.assert_allclose(pull[0].numpy(), slope, rtol=1e-7, atol=1e-9)


def test_fednsam_without_sam_is_one_method_in_two_frames():
    """rho = 0: clients that start at w + gamma m, and clients that look gamma m ahead of where they are.

    Both iterates differ by gamma m in every step, hence the tolerance; weight decay would tell them apart.
    """
    f = federation(C=5.0)
    moved, looking = (method(n, gamma=0.8, rho=0.0) for n in ("fednsam", "fednsam_momentum"))
    for left, right in zip(states(moved, f), states(looking, f), strict=True):
        torch.testing.assert_close(left.w, right.w, rtol=0, atol=1e-12)


def test_fedlesam_estimates_alike_where_everybody_takes_part():
    """The global model of a client's last cohort is then that of the last round."""
    f = federation(cohorts=((0, 1, 2),), wd=0.01)
    for name in ("fedlesam", "fedlesam_s", "fedlesam_d"):
        for seen, update in zip(
            states(method(name), f), states(method(name, estimate="last_update"), f), strict=True
        ):
            assert torch.equal(seen.w, update.w)
    partial = federation(wd=0.01)
    ends = [last(method("fedlesam", estimate=e), partial).w for e in ("last_seen", "last_update")]
    assert not torch.equal(*ends)


def test_fedlesam_perturbs_no_client_in_its_first_cohort():
    """Whatever vector its memory begins with: the engine gives it the start of that round."""
    f = federation(rounds=1)
    assert torch.equal(last(method("fedlesam", rho=0.5), f).w, last(method("fedavg"), f).w)


def test_fedmoswa_of_everybody_without_its_averages_is_scaffold():
    """gamma = 1: m = mean(c_i) over the cohort. Written in another order, hence the tolerance."""
    f = federation(cohorts=((0, 1, 2),), wd=0.01, C=5.0)
    plain = method("fedmoswa", rho=1.0, server_lr=1.0, gamma=1.0)
    for left, right in zip(states(plain, f), states(method("scaffold"), f), strict=True):
        torch.testing.assert_close(left.w, right.w, rtol=0, atol=1e-12)
        torch.testing.assert_close(left.server["m"], right.server["c"], rtol=0, atol=1e-12)


def test_fedasam_of_parameters_of_one_size_is_fedsam():
    """T = |y| + eta is almost eta for a large eta, and rho T^2 g / ||T g|| is rho eta g / ||g||."""
    f = federation(wd=0.01)
    adaptive = last(method("fedasam", rho=0.2e-9, eta=1e9), f)
    torch.testing.assert_close(adaptive.w, last(method("fedsam", rho=0.2), f).w)


def test_igfl_of_one_client_is_fedavg():
    """c is its c_i, and the fresh gradient replaces all of it. c - (c - g) is g but for rounding."""
    alone = federation(clients=1, K=(4,), cohorts=((0,),), wd=0.01, C=5.0)
    end = last(method("igfl", gamma=0.7), alone).w
    torch.testing.assert_close(end, last(method("fedavg"), alone).w, rtol=0, atol=1e-12)


def test_igfl_among_many_clients_takes_the_direction_of_fedcm():
    """A client's own part of c is then nothing."""
    many, start = replace(INFO, samples=range(10**18)), torch.zeros(2, 3, dtype=torch.float64)
    ctx = client_context(
        start, {}, lr=0.1, steps=torch.tensor([[2.0]] * 2), step=0, round=1, experiment=many
    )
    c = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    igfl, fedcm = method("igfl", gamma=0.75), method("fedcm", alpha=0.25)
    memory = {"c_i": torch.full_like(start, 5.0)}
    left, _ = igfl.local_step(start, memory, lambda x: x + 2, ctx._replace(shared={"c": c}))
    right, _ = fedcm.local_step(start, {}, lambda x: x + 2, ctx._replace(shared={"Delta": c}))
    assert torch.equal(left, right)


def test_fedlada_of_small_gradients_without_a_first_moment_is_fedcm():
    """epsilon = 1 and |g| < 1: no squared gradient exceeds the start of the second moment, 1."""
    f = federation(wd=0.01)
    f = f._replace(b=f.b / 100, x0=f.x0 / 100)
    adaptive = method("fedlada", alpha=0.3, beta1=0.0, epsilon=1.0)
    for left, right in zip(states(adaptive, f), states(method("fedcm", alpha=0.3), f), strict=True):
        assert torch.equal(left.w, right.w)
        assert torch.equal(left.server["Delta"], right.server["Delta"])


@pytest.mark.parametrize("name", ["local_adamw", "fedadamw"])
def test_adam_with_a_large_epsilon_and_no_first_moment_is_sgd(name):
    """d is g / epsilon: FedAvg at that learning rate, without FedAdamW's last update."""
    f = federation(C=1.5)
    plain = {"gamma": 0.0} if name == "fedadamw" else {}
    adam = method(name, beta1=0.0, epsilon=1e9, **plain)
    end = last(adam, f._replace(eta=tuple(1e9 * eta for eta in f.eta))).w
    torch.testing.assert_close(end, last(method("fedavg"), f).w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["local_adamw", "fedadamw", "fedlada"])
def test_adam_without_moments_steps_by_the_sign(name):
    """beta1 = beta2 = 0: g / |g| in every parameter, in the first round."""
    only = {"alpha": 1.0} if name == "fedlada" else {}
    f = federation(rounds=1, K=(1, 1, 1), cohorts=((1,),))
    delta = last(method(name, beta1=0.0, beta2=0.0, **only), f).w - torch.tensor(f.x0)
    signs = -0.1 * np.sign(f.gradient(0, 1, 0, f.x0))
    torch.testing.assert_close(delta, torch.tensor(signs))


def test_local_adamw_equals_torchs():
    """One client: torch's optimiser, made anew in every round, on gradients that torch itself clips."""
    f = federation(rounds=3, clients=1, K=(5,), cohorts=((0,),), wd=0.1, C=1.5)
    w = torch.tensor(f.x0, requires_grad=True)
    options = {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": f.wd}
    local = method("local_adamw", beta1=0.8, beta2=0.9, epsilon=1e-3)
    for r, state in enumerate(states(local, f)):
        optimizer = torch.optim.AdamW([w], lr=f.eta[r], **options)
        for k in range(5):
            w.grad = torch.tensor(f.gradient(r, 0, k, w.detach().numpy()))
            torch.nn.utils.clip_grad_norm_([w], f.C)
            optimizer.step()
        torch.testing.assert_close(state.w, w.detach(), rtol=0, atol=1e-12)


def test_a_model_of_one_tensor_has_one_norm():
    """The sum of its tensors' norms is the global norm, and FedWMSAM's perturbation the same."""
    f = federation(wd=0.01)._replace(shapes=((5,),))
    ends = [
        last(method("fedwmsam_released", perturbation=p), f).w for p in ("vector", "sum_of_norms")
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
    two = last(method("fedwmsam_released", perturbation="sum_of_norms"), federation(wd=0.01)).w
    assert (two - ends[0]).abs().max() > 1e-4


def test_moon_leaves_a_client_in_its_first_cohort_alone():
    f = federation(rounds=1)
    assert torch.equal(last(method("moon", mu=5.0), f).w, last(method("fedavg"), f).w)


def test_asyncsam_takes_a_step_of_sam_first():
    f = federation(K=(1, 1, 1), wd=0.01, C=5.0)
    old = method("asyncsam", rho=0.5, tau=3)
    assert torch.equal(last(old, f).w, last(method("fedsam", rho=0.5), f).w)


def test_asyncsam_perturbs_along_the_gradient_of_tau_steps_before():
    """Gradients at the iterates are the number of the step; each call tells where it is."""
    x, points = torch.zeros(1, 3), []
    ctx = client_context(x, {}, 0.1, torch.tensor([[6.0]]), step=0, round=1, experiment=INFO)
    memory = {}
    for k in range(6):

        def grad(at: Tensor, samples: int | None = None, k: int = k) -> Tensor:
            points.append((k, samples, at))
            return torch.nn.functional.one_hot(torch.tensor([k % 3]), 3).float()

        _, memory = method("asyncsam", rho=2.0, tau=2, ascent_samples=7).local_step(
            x, memory, grad, ctx._replace(step=k)
        )
    assert [samples for _, samples, _ in points] == [7, None] * 6
    perturbed = torch.cat([at for _, samples, at in points if samples is None])
    assert perturbed.argmax(-1).tolist() == [0, 0, 0, 1, 2, 0]
    assert perturbed.norm(dim=-1).tolist() == [2.0] * 6


def test_fedsol_perturbs_nothing_in_the_first_local_step():
    f = federation(K=(1, 1, 1))
    for strength in ("adaptive", "fixed"):
        one = method("fedsol", rho=5.0, strength=strength)
        assert torch.equal(last(one, f).w, last(method("fedavg"), f).w)


def perturbation(algorithm: Algorithm, x: Tensor, ctx: ClientContext) -> Tensor:
    """How far from x the last gradient of a local step is taken; the outputs are the parameters."""
    points = []

    def grad(at: Tensor, penalty=None, **options) -> Tensor:
        points.append(at)
        if penalty is None:
            return torch.zeros_like(at)
        z = at.detach().unsqueeze(-2).requires_grad_()
        batch = Batch(torch.zeros(len(at), 1, dtype=torch.int64), lambda y: y.unsqueeze(-2))
        return torch.autograd.grad(penalty(z, batch).sum(), z)[0].squeeze(-2)

    algorithm.local_step(x, {}, grad, ctx)
    return points[-1] - x


def test_fedsol_perturbs_away_from_the_start_points_outputs():
    """By rho in the fixed form, and by rho times what each parameter has moved in the adaptive one."""
    f = federation(shapes=((3, 2, 1, 2), (2, 2), (2,), ()))
    start = torch.randn(2, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    away = torch.linspace(-1, 2, 38, dtype=torch.float64).view(2, 19)
    away[:, 3] = away[:, 12] = away[:, 14] = 0  # a parameter; a column
    ctx = client_context(
        start, {}, 0.1, torch.full((2, 1), 2.0), step=1, round=1, experiment=info(f)
    )
    fixed = perturbation(method("fedsol", rho=0.3, strength="fixed"), start + away, ctx)
    torch.testing.assert_close(fixed.norm(dim=-1), torch.full((2,), 0.3, dtype=torch.float64))
    adaptive = perturbation(method("fedsol", rho=0.3), start + away, ctx)

    def divergence(e: Tensor) -> Tensor:
        z, z_glob = ((v / 3).log_softmax(-1) for v in (start + away + e, start))
        return torch.nn.functional.kl_div(z, z_glob, reduction="none", log_target=True).sum(-1)

    for e in (fixed, adaptive):
        assert (divergence(e) > divergence(0 * e)).all()
    for t in info(f).tensors:
        moved = t.view(away)
        expected = torch.stack(
            [
                torch.nn.functional.normalize(m.abs(), dim=0) if t.shape else m.sign().abs()
                for m in moved
            ]
        )
        torch.testing.assert_close(t.view(adaptive), expected * t.view(fixed))


LARGE_TAU = {
    # sqrt(v) + tau is about tau where v forgets tau^2 at once, and 2 tau where it does not.
    "fedadam": method("fedadam", server_lr=1e7, tau=1e7, beta1=0.0, beta2=0.0),
    "fedyogi": method("fedyogi", server_lr=2e7, tau=1e7, beta1=0.0),
    "fedadagrad": method("fedadagrad", server_lr=2e7, tau=1e7),
}


@pytest.mark.parametrize("adaptive", LARGE_TAU.values(), ids=LARGE_TAU)
def test_adaptive_servers_with_a_large_tau_are_fedavg(adaptive):
    f = federation(wd=0.01)
    torch.testing.assert_close(last(adaptive, f).w, last(method("fedavg"), f).w, rtol=1e-6, atol=0)


def test_fedadam_without_memory_moves_every_parameter_by_its_learning_rate():
    """beta1 = beta2 = 0 and a tiny tau: server_lr D / |D|, a sign step."""
    signs = method("fedadam", server_lr=0.03, tau=1e-12, beta1=0.0, beta2=0.0)
    f = federation()
    w = torch.tensor(f.x0)
    for state in states(signs, f):
        torch.testing.assert_close((state.w - w).abs(), torch.full_like(w, 0.03))
        w = state.w


@pytest.mark.parametrize(
    "corrected",
    [
        method("scaffold"),
        *rarely([method("feddyn", lam=0.5), method("fedgmt", lam=0.5, alpha=0.6, duals="all")]),
    ],
)
def test_corrected_clients_agree_at_the_optimum_of_the_mean_loss(corrected):
    """With partial participation and uneven K, where FedAvg ends elsewhere."""
    f = federation(rounds=600, noise=0.0)._replace(eta=(0.1,) * 600)
    best = np.linalg.solve(f.A.sum(0), np.einsum("ipq,iq->p", f.A, f.b[0, :, 0]))
    assert np.abs(last(corrected, f).w.numpy() - best).max() < 1e-6
    assert np.abs(last(method("fedavg"), f).w.numpy() - best).max() > 0.1


@pytest.mark.slow
def test_fedgmt_rests_with_the_duals_of_all_clients_alone():
    """Without noise, under partial participation."""
    f = federation(rounds=300, noise=0.0)._replace(eta=(0.1,) * 300)
    moves = {}
    for duals in ("active", "all"):
        fedgmt = method("fedgmt", lam=0.5, alpha=0.6, duals=duals)
        *_, previous, end = (state.w for state in states(fedgmt, f))
        moves[duals] = (end - previous).norm().item()
    assert moves["all"] < 1e-3 < 0.1 < moves["active"]


MOMENTA = {
    n: method(n) for n in ("fedavgm", "fednsam", "fednsam_momentum", "fednesterov", "fedacg")
}
MOMENTA["fednsam released_server"] = method("fednsam", released_server=True)


@pytest.mark.parametrize("algorithm", MOMENTA.values(), ids=MOMENTA)
def test_the_momentum_is_the_last_displacement(algorithm):
    """Gradients of w, equal for FedAvgM and FedNSAM: with rho = 0 only their start points differ."""
    f = federation(wd=0.01)
    w = torch.tensor(f.x0)
    for state in states(algorithm, f):
        torch.testing.assert_close(state.server["m"], state.w - w, rtol=0, atol=1e-12)
        w = state.w


def test_fedlesam_remembers_the_last_update_of_the_server():
    """For D it is not the cohort's mean, but that and h: w_{r+1} - w_r all the same."""
    f = federation(wd=0.01)
    for name in ("fedlesam", "fedlesam_s", "fedlesam_d"):
        w = torch.tensor(f.x0)
        for state in states(method(name, estimate="last_update"), f):
            assert torch.equal(state.server["u"], state.w - w)
            w = state.w


@pytest.mark.parametrize("name", ["feddyn", "fedspeed", "fedgloss", "fedsmoo", "fedlesam_d"])
def test_the_displacements_of_all_clients_average_to_h(name):
    """Over all N, seen or not, under partial participation and uneven K."""
    for state in states(method(name), federation(wd=0.01, C=5.0)):
        mean = torch.stack([memory["h_i"] for memory in state.memories]).mean(0)
        torch.testing.assert_close(mean, state.server["h"], rtol=0, atol=1e-12)
        assert state.server["h"].any()


def test_the_duals_of_the_cohort_move_w_of_fedgmt_beyond_the_mean():
    f = federation(wd=0.01, C=5.0)
    w = torch.tensor(f.x0)
    before = (torch.zeros_like(w),) * f.N
    for state, cohort in zip(states(method("fedgmt", duals="active"), f), f.cohorts, strict=True):
        h = tuple(memory["h_i"] for memory in state.memories)
        ends = torch.stack([w + h[i] - before[i] for i in cohort])
        expected = ends.mean(0) + torch.stack([h[i] for i in cohort]).mean(0)
        torch.testing.assert_close(state.w, expected, rtol=0, atol=1e-12)
        w, before = state.w, h


def test_fedgmt_averages_the_models_before_with_falling_weights():
    """e_r = alpha^r w_0 + (1 - alpha) (w_r + alpha w_(r-1) + ...)."""
    f, alpha = federation(), 0.6
    models = [torch.tensor(f.x0)]
    for r, state in enumerate(states(method("fedgmt", alpha=alpha), f), 1):
        models.append(state.w)
        weights = [alpha**r, *((1 - alpha) * alpha ** (r - k) for k in range(1, r + 1))]
        expected = sum(a * w for a, w in zip(weights, models, strict=True))
        torch.testing.assert_close(state.server["e"], expected, rtol=0, atol=1e-12)


def test_the_servers_perturbation_of_fedsmoo_has_the_norm_rho():
    for state in states(method("fedsmoo", rho=0.3), federation(wd=0.01, C=5.0)):
        assert state.server["s"].norm().item() == pytest.approx(0.3, abs=1e-12)


def test_fedgloss_starts_uphill_of_w_by_the_servers_radius():
    f, gloss = federation(wd=0.01, C=5.0), method("fedgloss", rho=0.3)
    first = torch.tensor(f.x0)
    assert torch.equal(gloss.broadcast(first, gloss.init_server(first))[0], first)
    for state in states(gloss, f):
        start, shared = gloss.broadcast(state.w, state.server)
        assert not shared
        assert (start - state.w).norm().item() == pytest.approx(0.3, abs=1e-12)
        assert (start - state.w) @ state.server["D"] < 0


def test_fednsam_without_sam_differs_from_fedavgm_by_its_start_point_only():
    nesterov, heavy_ball = method("fednsam", gamma=0.8, rho=0.0), method("fedavgm", gamma=0.8)
    f = federation()
    (one, other), (next_one, next_other), *_ = zip(
        states(nesterov, f), states(heavy_ball, f), strict=True
    )
    assert torch.equal(one.w, other.w)  # m was 0 before: the starts were equal too
    assert not torch.equal(next_one.w, next_other.w)
    start, shared = nesterov.broadcast(one.w, one.server)
    assert torch.equal(start, one.w + 0.8 * one.server["m"])
    assert torch.equal(heavy_ball.broadcast(other.w, other.server)[0], other.w)
    assert not shared


@pytest.mark.parametrize("name", ["scaffold", "fedwmsam", "fedgamma", "fedlesam_s"])
def test_the_control_variates_of_all_clients_average_to_c(name):
    """Over all N, seen or not, under partial participation and uneven K."""
    for state in states(method(name), federation(wd=0.01, C=5.0)):
        mean = torch.stack([memory["c_i"] for memory in state.memories]).mean(0)
        torch.testing.assert_close(mean, state.server["c"], rtol=0, atol=1e-12)
        assert state.server["c"].any()


def test_the_gradients_of_a_full_cohort_average_to_igfls_c():
    for state in states(method("igfl"), federation(cohorts=((0, 1, 2),), wd=0.01, C=5.0)):
        mean = torch.stack([memory["c_i"] for memory in state.memories]).mean(0)
        torch.testing.assert_close(mean, state.server["c"], rtol=0, atol=1e-12)


def test_the_last_iterates_of_the_cohort_average_to_the_new_w_of_moon():
    f = federation(wd=0.01, C=5.0)
    for state, cohort in zip(states(method("moon"), f), f.cohorts, strict=True):
        mean = torch.stack([state.memories[i]["w_prev"] for i in cohort]).mean(0)
        torch.testing.assert_close(mean, state.w, rtol=0, atol=1e-12)


def test_fedadamw_counts_the_steps_that_its_second_moment_has_seen():
    f, t = federation(), 0.0
    for state, cohort in zip(states(method("fedadamw"), f), f.cohorts, strict=True):
        t += sum(f.K[i] for i in cohort) / len(cohort)
        assert state.server["t"].item() == t


def test_the_second_moment_of_fedlada_never_falls():
    v = torch.zeros(5, dtype=torch.float64)
    for state in states(method("fedlada"), federation(wd=0.01)):
        assert (state.server["v"] >= v).all()
        v = state.server["v"]


@pytest.mark.parametrize("name", ["local_adamw", "fedadamw", "fedlada", "fedmuon", "asyncsam"])
def test_moments_of_a_round_are_nobodys_memory(name):
    for state in states(method(name), federation(rounds=2)):
        assert not any(state.memories)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.5, 1.0])
def test_alpha_stays_in_its_bounds_and_waits_for_a_momentum(alpha):
    low, high = 0.2, 0.6
    adaptive = method("fedwmsam", alpha=alpha, alpha_min=low, alpha_max=high, ema=0.5)
    values = [state.server["alpha"].item() for state in states(adaptive, federation(rounds=20))]
    assert values[0] == alpha  # Delta was 0
    assert len(set(values)) > 2
    assert all(min(alpha, low) <= value <= max(alpha, high) for value in values)


@pytest.mark.parametrize(("agreement", "expected"), [(1, 0.1), (0, 0.9), (-1, 0.9), (0.5, 0.5)])
def test_alpha_falls_where_clients_agree_with_the_momentum_and_rises_where_not(agreement, expected):
    """One client with cos(g_i, Delta) = agreement: alpha moves by ema towards clip(1 - agreement)."""
    adaptive = method("fedwmsam", alpha=0.4, ema=0.25, control_variates=False)
    w = torch.zeros(2, dtype=torch.float64)
    server = adaptive.init_server(w) | {"Delta": torch.tensor([3.0, 0.0], dtype=torch.float64)}
    g_i = torch.tensor([[agreement, (1 - agreement**2) ** 0.5]], dtype=torch.float64)
    steps, lr = torch.tensor([[4.0]]), 0.1
    ctx = client_context(w.expand(1, -1), adaptive.broadcast(w, server)[1], lr, steps, 4, 1, INFO)
    uploads, _ = adaptive.upload(-4 * lr * g_i, {}, ctx)
    mean = {name: value.mean(0) for name, value in uploads.items()}
    _, after = adaptive.server_step(w, server, mean, ServerContext(lr, 4.0, 1.0, 1))
    assert after["alpha"].item() == pytest.approx(0.75 * 0.4 + 0.25 * expected, abs=1e-12)
    torch.testing.assert_close(after["Delta"], g_i[0])


ONES, ZEROS = torch.ones(3), torch.zeros(3)
CORRECTIONS: dict[str, tuple[Algorithm, Vectors, Vectors, float]] = {
    "scaffold c": (method("scaffold"), {"c": ONES}, {"c_i": ZEROS}, 2.0 + 1),
    "scaffold c_i": (method("scaffold"), {"c": ZEROS}, {"c_i": ONES}, 2.0 - 1),
    "fedcm Delta": (method("fedcm", alpha=0.25), {"Delta": ONES}, {}, 0.25 * 2 + 0.75),
    "fedwmsam Delta": (
        method("fedwmsam", control_variates=False),
        {"Delta": ONES, "alpha": torch.tensor([0.25])},
        {},
        0.25 * 2 + 0.75,
    ),
    "fedwmsam c": (
        method("fedwmsam"),
        {"Delta": ZEROS, "alpha": torch.tensor([0.25]), "c": ONES},
        {"c_i": ZEROS},
        0.25 * (2 + 1),
    ),
    "mofedsam Delta": (
        method("mofedsam", alpha=0.25, rho=0.0),
        {"Delta": ONES},
        {},
        0.25 * 2 + 0.75,
    ),
    "fedwsam Delta": (  # both points have the gradient 2
        method("fedwsam", alpha=0.25, rho=0.0),
        {"Delta": ONES},
        {},
        0.25 * 2 + 0.75,
    ),
    "fedgamma c": (method("fedgamma", rho=0.0), {"c": ONES}, {"c_i": ZEROS}, 2.0 + 1),
    "feddyn h_i": (method("feddyn", lam=0.5), {}, {"h_i": ONES}, 2.0 + 0.5),
    "fedspeed h_i": (method("fedspeed", lam=0.5, rho=0.0), {}, {"h_i": ONES}, 2.0 + 0.5),
    "fedgloss h_i": (method("fedgloss", lam=0.5, rho_local=0.0), {}, {"h_i": ONES}, 2.0 + 0.5),
    "fedgf w_p": (  # the gradient at 0.25 * 4
        method("fedgf", rho=0.0),
        {"w_p": 4 * ONES, "c": torch.tensor([0.25])},
        {},
        2.0 + 1,
    ),
    "fedgmt h_i": (method("fedgmt", lam=0.5), {"e": ZEROS}, {"h_i": ONES}, 2.0 + 0.5),
    "fedsmoo s": (  # q = 2 - 4 is negative, and e = -1
        method("fedsmoo", rho=3**0.5),
        {"s": 4 * ONES},
        {"h_i": ZEROS, "mu_i": ZEROS},
        2.0 - 1,
    ),
    "fedsmoo mu_i": (
        method("fedsmoo", rho=3**0.5),
        {"s": ZEROS},
        {"h_i": ZEROS, "mu_i": 4 * ONES},
        2.0 - 1,
    ),
    "fedlesam w_seen": (
        method("fedlesam", rho=3**0.5),
        {},
        {"w_seen": 5 * ONES, "seen": torch.ones(1)},
        2.0 + 1,
    ),
    "fedlesam e": (method("fedlesam", estimate="last_update"), {"e": ONES}, {}, 2.0 + 1),
    "fedlesam_s c": (
        method("fedlesam_s", rho=0.0, correction=0.5),
        {"c": ONES},
        {"c_i": ZEROS, "w_seen": ZEROS, "seen": torch.zeros(1)},
        2.0 + 0.5,
    ),
    "igfl c": (method("igfl", gamma=0.75), {"c": ONES}, {"c_i": ZEROS}, 0.25 * 2 + 0.75 * 1.5),
    "igfl c_i": (method("igfl", gamma=0.75), {"c": ZEROS}, {"c_i": ONES}, 0.25 * 2 + 0.75 / 4),
    "fedadamw Delta": (  # Adam's first step is 1
        method("fedadamw", gamma=0.5),
        {"Delta": ONES, "v": ZEROS, "t": torch.zeros(1)},
        {},
        1.0 + 0.5,
    ),
    "fedadamw v": (  # v = 0.5 * 12 + 0.5 * 4, seen 0.75 of it after two steps
        method("fedadamw", beta2=0.5, gamma=0.5),
        {"Delta": ZEROS, "v": 12 * ONES, "t": ONES[:1]},
        {},
        2 / (8 / 0.75) ** 0.5,
    ),
    "fedlada Delta": (  # m = 0.5 * 2, v = 0.25 * 4
        method("fedlada", alpha=0.25, beta1=0.5, beta2=0.75),
        {"Delta": ONES, "v": ZEROS},
        {},
        0.25 + 0.75,
    ),
    "fedlada v": (  # m = 0.5 * 2; v falls to 0.75 * 16 + 0.25 * 4, its maximum stays
        method("fedlada", alpha=1.0, beta1=0.5, beta2=0.75),
        {"Delta": ZEROS, "v": 16 * ONES},
        {},
        1 / 4,
    ),
    "fedmuon Delta": (  # Adam's first step is 1
        method("fedmuon", gamma=0.25),
        {"Delta": 5 * ONES, "M": ZEROS},
        {},
        0.75 + 0.25 * 5,
    ),
    "fedmoswa m": (method("fedmoswa"), {"m": ONES}, {"c_i": ZEROS}, 2.0 + 1),
    "fedmoswa c_i": (method("fedmoswa"), {"m": ZEROS}, {"c_i": ONES}, 2.0 - 1),
}


@pytest.mark.parametrize("case", CORRECTIONS)
def test_a_correction_changes_the_direction(case):
    """Direction where the gradient is 2: released code adds corrections to the loss, to no effect."""
    algorithm, shared, memory, expected = CORRECTIONS[case]
    start = torch.zeros(1, 3)
    ctx = client_context(
        start, shared, lr=0.1, steps=torch.tensor([[2.0]]), step=0, round=1, experiment=INFO
    )
    stack = {name: value.unsqueeze(0) for name, value in memory.items()}
    direction, _ = algorithm.local_step(start, stack, lambda x, *_, **options: x + 2, ctx)
    torch.testing.assert_close(direction, torch.full((1, 3), expected))


@pytest.mark.parametrize(
    "algorithm",
    [
        method("fedprox", mu=0.5),
        method("fedacg", beta=0.5),
        method("feddyn", lam=0.5),
        method("fedgloss", lam=0.5, rho_local=0.0),
    ],
)
def test_a_proximal_term_pulls_back_to_the_start(algorithm):
    """Direction where the gradient is 2, at 3 from the start."""
    start, memory = torch.ones(1, 3), algorithm.init_client(torch.ones(1, 3))
    ctx = client_context(
        start, {}, lr=0.1, steps=torch.tensor([[2.0]]), step=1, round=1, experiment=INFO
    )
    direction, _ = algorithm.local_step(start + 3, memory, lambda x: 2 + 0 * x, ctx)
    torch.testing.assert_close(direction, torch.full((1, 3), 2 + 0.5 * 3))


def test_the_learning_rate_of_fedswa_falls_by_the_same_amount_in_every_step():
    """From 1 towards rho, over each client's own number of steps."""
    steps = torch.tensor([[4.0], [2.0]])
    ctx = client_context(
        torch.zeros(2, 3), {}, lr=0.1, steps=steps, step=0, round=1, experiment=INFO
    )
    falling = method("fedswa", rho=0.2).local_step
    directions = [falling(ctx.start, {}, torch.ones_like, ctx._replace(step=k))[0] for k in (0, 1)]
    factors = torch.stack([direction[:, 0] for direction in directions])
    torch.testing.assert_close(factors, torch.tensor([[1.0, 1.0], [0.8, 0.6]]))
