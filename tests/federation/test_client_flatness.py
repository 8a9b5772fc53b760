"""Clients whose round is run again: they end where they ended, and are measured as anyone would."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import each
from local_pool import specs

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.vectors import cosine
from rayfl.config.schema import load_config
from rayfl.federation.client import Client
from rayfl.federation.client_flatness import (
    ClientRounds,
    client_probe,
    measure_alignment,
    measure_variance,
)
from rayfl.federation.pool import LocalPool
from rayfl.federation.probe import PROBE_UNIT, PooledObjective
from rayfl.federation.server import Server
from rayfl.flatness.measures import Effort
from rayfl.prepare import prepare
from rayfl.training.objective import SampleObjective

EFFORT = Effort(rhos=(0.05,), lanczos_steps=25, minibatches=400)
ALL = 10_000  # samples


def after(rounds, algorithm, small):
    """The server after so many rounds, its state then, and the objects that measure it."""
    prepared = prepare(load_config(small))
    prepared = replace(prepared, config=prepared.config.model_copy(update={"algorithm": algorithm}))
    server_spec, client = specs(prepared, algorithm)
    pool = LocalPool(Client(client))
    server = Server(server_spec, pool)
    list(server.run(until=rounds))
    state = server.snapshot()
    state.tensors.update({name: array.copy() for name, array in state.tensors.items()})
    ask = ClientRounds(pool, state, prepared.federation, algorithm, prepared.partition)
    w, buffers = (torch.tensor(state.tensors[name]) for name in ("w", "buffers"))
    pooled = PooledObjective(pool, rounds, w, buffers, "train", prepared.partition.indices)
    return server, ask, pooled


@dataclass(frozen=True, kw_only=True)
class UploadsTwice(Algorithm):
    """FedAvg whose `delta` is twice the way that a client came."""

    def upload(self, delta, memory, ctx):
        return {"delta": 2 * delta}, memory

    def server_step(self, w, server, mean, ctx):
        return w + mean["delta"] / 2, server


METHODS = {name: ALGORITHMS[name]() for name in ("fedavg", "scaffold", "fedwmsam", "fednsam")}


@pytest.mark.slow
@each(algorithm=METHODS | {"uploads twice": UploadsTwice()})
def test_the_clients_end_where_the_next_round_ends(algorithm, small):
    """From the state after round 2, with its memories: the mean of the ends is round 3's."""
    small["federation"] |= {"clients_per_unit": 1, "stack": 1}
    server, ask, pooled = after(2, algorithm, small)
    clients = ask.clients(100)
    assert len(clients) == 5
    _, gradient = pooled.gradient()
    vectors = {"gradient": gradient[None].numpy(), "tops": np.eye(2, len(gradient), dtype="f4")}
    results = ask.ask(clients, client_probe("alignment", ALL, EFFORT), vectors)
    mean = np.mean([result.vectors["end"] for result in results], axis=0)
    start, _ = server.algorithm.broadcast(server.w, server.state)
    list(server.run(until=3))
    expected = server.w
    np.testing.assert_allclose(mean, expected, rtol=0, atol=2e-6)
    assert not np.allclose(mean, start, atol=1e-4)


def test_gradients_at_several_points_are_those_of_each_alone(small):
    """In units of 512 samples, each asked for before the first has come back."""
    _, ask, pooled = after(1, ALGORITHMS["fedavg"](), small)
    engine, indices = ask.pool.client.engine, torch.from_numpy(pooled.samples)
    assert len(indices) > 2 * PROBE_UNIT
    whole = SampleObjective(engine.function, engine.train_data, indices, pooled.w, torch.zeros(0))
    offsets = 0.05 * torch.randn(3, len(pooled.w), generator=torch.Generator().manual_seed(0))
    together = pooled.gradients(offsets)
    for offset, (loss, gradient) in zip(offsets, together, strict=True):
        alone_loss, alone_gradient = pooled.gradient(offset)
        assert loss == alone_loss
        assert torch.equal(gradient, alone_gradient)
        expected_loss, expected = whole.gradient(offset)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_fewer_clients_are_some_of_the_cohort(small):
    _, ask, _ = after(1, ALGORITHMS["fedavg"](), small)
    assert set(ask.clients(3)) < set(ask.clients(100))
    assert len(ask.clients(3)) == 3
    assert ask.clients(3) == ask.clients(3)


def test_measures_follow_their_definitions(small):
    """Each from losses and gradients of F_i and F, evaluated here, at points that the clients give."""
    _, ask, pooled = after(2, ALGORITHMS["fedavg"](), small)
    clients = ask.clients(3)
    found = measure_alignment(ask, pooled, clients, ALL, EFFORT)
    engine = ask.pool.client.engine

    def objective(client, w):
        own = torch.from_numpy(ask.partition.client(client))
        return SampleObjective(engine.function, engine.train_data, own, w, torch.zeros(0))

    _, gradient = pooled.gradient()
    own = [objective(client, pooled.w).gradient()[1] for client in clients]
    cosines = [float(cosine(g, gradient)) for g in own]
    assert found.metrics["alignment/gradient"] == pytest.approx(np.mean(cosines), rel=1e-4)
    assert found.cosines[0, 1] == pytest.approx(float(cosine(own[0], own[1])), rel=1e-4)
    assert found.cosines[2, 2] == pytest.approx(1)
    assert "alignment/perturbation" not in found.metrics  # FedAvg has none

    def gap(objective):
        loss, g = objective.gradient()
        return objective.gradient(0.05 * g / g.norm())[0] - loss

    starts = [gap(objective(client, pooled.w)) for client in clients]
    assert found.metrics["clients/gap_0.05_start"] == pytest.approx(np.mean(starts), rel=1e-3)
    dense = [objective(client, pooled.w) for client in clients]
    assert found.by_client["lambda1_start"][0] == pytest.approx(largest(dense[0]), rel=1e-2)


def largest(objective):
    """The largest eigenvalue by power iteration on H + 10, whose largest in size is H's largest."""
    v = torch.randn(len(objective.w), generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        v = objective.products(v[None])[0] + 10 * v
        v = v / v.norm()
    return float(v @ objective.products(v[None])[0])


@pytest.mark.slow
def test_sam_perturbs_by_rho_along_its_own_gradient(small):
    _, ask, pooled = after(2, ALGORITHMS["fedsam"](rho=0.07), small)
    found = measure_variance(ask, ask.clients(2), ALL, EFFORT)
    assert found.metrics["variance/perturbation"] == pytest.approx(0.07, rel=1e-5)
    aligned = measure_alignment(ask, pooled, ask.clients(2), ALL, EFFORT)
    assert -1 < aligned.metrics["alignment/perturbation"] < 1


def test_the_variance_is_that_of_minibatches(small):
    """Exactly: (n - B) / (n - 1) / B times the variance of one sample's gradient, without replacement."""
    _, ask, _ = after(2, ALGORITHMS["fedavg"](), small)
    (client,) = ask.clients(1)
    found = measure_variance(ask, [client], ALL, EFFORT).metrics
    engine, own = ask.pool.client.engine, ask.partition.client(client)
    w = torch.tensor(ask.state.tensors["w"])
    each_sample = torch.stack(
        [
            SampleObjective(
                engine.function, engine.train_data, torch.tensor([i]), w, torch.zeros(0)
            ).gradient()[1]
            for i in own
        ]
    )
    n, B = len(own), 16
    spread = float((each_sample - each_sample.mean(0)).square().sum(1).mean())
    assert found["variance/noise"] == pytest.approx(spread * (n - B) / (n - 1) / B, rel=0.15)
    assert found["variance/shift"] == 0
    assert found["variance/ratio"] == pytest.approx(1)


def test_the_engine_trains_as_before_afterwards(small):
    """The clients follow another algorithm only while they are asked."""
    _, ask, pooled = after(2, ALGORITHMS["fedwmsam"](), small)
    engine = ask.pool.client.engine
    before = engine.algorithm, engine.stacks
    measure_alignment(ask, pooled, ask.clients(1), ALL, EFFORT)
    assert (engine.algorithm, engine.stacks) == before
