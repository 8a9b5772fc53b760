"""Registered models in real work units: adapters, dropout, bfloat16, and batches of one."""

import pytest
import torch
from local_pool import LocalPool

from rayfl import load_config
from rayfl.errors import ConfigError
from rayfl.experiment import prepare
from rayfl.runtime.client import Client
from rayfl.runtime.server import Server
from rayfl.training.engine import Broadcast, Engine, WorkUnit
from rayfl.training.flat import Layout


@pytest.fixture
def adapted(small):
    """vit_tiny with adapters on digits, with dropout, which draws random numbers."""
    small["model"] = {
        "name": "vit_tiny",
        "image_size": 8,
        "lora": {"r": 2, "alpha": 4.0, "dropout": 0.1},
    }
    small["algorithm"] = {"name": "mofedsam"}
    small["federation"] |= {"rounds": 2, "cohort_size": 3, "clients_per_unit": 1, "local_steps": 2}
    small["federation"] |= {"local_epochs": None, "precision": "bfloat16"}
    return small


def server_on(prepared):
    """After all rounds, in this process; and the records."""
    algorithm, model = prepared.config.algorithm, prepared.model
    w, buffers = (v.numpy() for v in Layout(model).flatten(model))
    data, settings = (prepared.data, prepared.partition), prepared.settings
    client = Client("test", model, algorithm, data, settings, 1, 0)
    pool = LocalPool(client)
    server = Server(algorithm, "test", w, buffers, prepared.federation, pool)
    return server, list(server.run())


def test_frozen_weights_keep_their_bits(adapted):
    prepared = prepare(load_config(adapted))
    frozen = {n: p for n, p in prepared.model.named_parameters() if not p.requires_grad}
    before = {name: parameter.clone() for name, parameter in frozen.items()}
    server, _ = server_on(prepared)
    assert not torch.equal(server.w, Layout(prepared.model).flatten(prepared.model)[0])
    assert len(before) > 70
    assert all(torch.equal(parameter, before[name]) for name, parameter in frozen.items())


def engine_of(prepared) -> Engine:
    data, partition = prepared.data, prepared.partition
    return Engine(
        prepared.model, prepared.config.algorithm, data, partition, prepared.settings, "cpu"
    )


def test_a_batch_of_one_is_refused_before_any_actor_starts(small):
    small["model"] = {"name": "resnet18", "norm": "batch"}
    small["partition"] = {"name": "iid"}
    small["federation"] |= {"clients": 10, "batch_size": 1}
    with pytest.raises(
        ConfigError, match=r"'resnet18': its batch normalisation.*model\.norm=group"
    ):
        prepare(load_config(small))
    small["model"]["norm"] = "group"
    prepare(load_config(small))


def test_one_unit_does_not_depend_on_the_units_before(adapted):
    """Dropout and SAM's second pass included: any actor can execute any unit at any time."""
    prepared = prepare(load_config(adapted))
    engine, algorithm = engine_of(prepared), prepared.config.algorithm
    w, buffers = Layout(prepared.model).flatten(prepared.model)
    start, shared = algorithm.broadcast(w, algorithm.init_server(w))
    broadcast = Broadcast(start.numpy(), {n: v.numpy() for n, v in shared.items()}, buffers.numpy())
    unit, other = WorkUnit(1, (0,), 0.1), WorkUnit(1, (1,), 0.1)
    first, _ = engine.train(unit, broadcast, [None])
    engine.train(other, broadcast, [None])
    again, _ = engine.train(unit, broadcast, [None])
    assert (first.sums["delta"] == again.sums["delta"]).all()
