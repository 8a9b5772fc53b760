"""Registered models in real work units: adapters, batch statistics, dropout and bfloat16."""

import pytest
import torch
from local_pool import a_server
from torch import nn
from torch.nn import functional as F

from rayfl import load_config, models, run
from rayfl.models.lora import merged
from rayfl.prepare import prepare
from rayfl.training.batches import DeviceData
from rayfl.training.engine import Engine
from rayfl.training.flat import Layout, sha256
from rayfl.training.units import Broadcast, WorkUnit


@pytest.fixture
def adapted(small):
    """vit_tiny with adapters on digits, with dropout, which draws random numbers."""
    small["model"] = {
        "name": "vit_tiny",
        "image_size": 8,
        "lora": {"r": 2, "alpha": 4.0, "dropout": 0.1},
    }
    small["algorithm"] = {"name": "mofedsam"}
    small["federation"] |= {"rounds": 2, "cohort": 3, "clients_per_unit": 1, "local_steps": 2}
    small["federation"] |= {"local_epochs": None, "precision": "bfloat16"}
    return small


def server_on(prepared):
    """After all rounds, in this process; and the records."""
    server = a_server(prepared)
    return server, list(server.run())


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "actors",
    [
        pytest.param(1, marks=pytest.mark.long),
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(3, marks=pytest.mark.long),
    ],
)
def test_adapters_and_head_alone_are_trained_and_travel(adapted, actors):
    """Six blocks of qkv (192 -> 576) and proj (192 -> 192) at r = 2, and a head for 10 classes."""
    adapted["resources"] = {"num_actors": actors}
    config = load_config(adapted)
    result = run(config)
    reference, _ = server_on(prepare(config))
    assert result.model_sha256 == sha256(reference.w)

    size = 6 * 2 * ((192 + 576) + (192 + 192)) + (192 * 10 + 10)
    # MoFedSAM sends the start point and the global direction down, and the delta up.
    assert set(result.history["cost/bytes_up"]) == {4.0 * size * 3}
    assert set(result.history["cost/bytes_down"]) == {4.0 * size * 3 * 2}

    data = config.data.load()
    first = models.build(config.model, data.sample_shape, data.num_classes, config.seed)
    expected = merged(first).state_dict()
    trained = {"self_attention.in_proj_weight", "self_attention.out_proj.weight"}
    for name, tensor in result.state_dict.items():
        moves = name.startswith("heads.") or any(name.endswith(end) for end in trained)
        assert torch.equal(tensor, expected[name]) != moves, name

    adapted["model"].pop("lora")
    plain = models.build(load_config(adapted).model, data.sample_shape, data.num_classes, 5)
    plain.load_state_dict(result.state_dict)
    test = DeviceData(data, "test", torch.device("cpu"))
    looks = test.preprocess(torch.arange(len(test)), None, None)
    accuracy = (plain.eval()(looks).argmax(-1) == test.y).float().mean().item()
    assert accuracy == pytest.approx(result.history["test/accuracy"].iloc[-1], abs=0.003)


@pytest.mark.slow
def test_frozen_weights_keep_their_bits(adapted):
    prepared = prepare(load_config(adapted))
    frozen = {n: p for n, p in prepared.model.named_parameters() if not p.requires_grad}
    before = {name: parameter.clone() for name, parameter in frozen.items()}
    server, _ = server_on(prepared)
    assert not torch.equal(server.w, Layout(prepared.model).flatten(prepared.model)[0])
    assert len(before) > 70
    assert all(torch.equal(parameter, before[name]) for name, parameter in frozen.items())


@pytest.fixture
def batch_norm(small):
    small["model"] = {"name": "resnet18", "norm": "batch", "stem": "cifar"}
    small["federation"] |= {"clients": 3, "cohort": 2, "clients_per_unit": 1, "rounds": 1}
    small["federation"] |= {"local_steps": 1, "local_epochs": None, "batch_size": 4}
    small["partition"] = {"name": "iid"}
    return small


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedavg", "fedsam"])
def test_batch_statistics_of_resnet_are_those_of_the_first_passes_averaged(batch_norm, algorithm):
    """Two clients through real work units, against a loop over the plain module.

    One step each: on maps of 1 x 1 batch normalisation would amplify the rounding of the steps before.
    """
    rho = 0.1 if algorithm == "fedsam" else 0.0
    batch_norm["algorithm"] = {"name": algorithm, **({"rho": rho} if rho else {})}
    batch_norm["federation"] |= {"weight_decay": 0.0, "clip_norm": None, "lr": 0.001}
    prepared = prepare(load_config(batch_norm))
    layout, engine = Layout(prepared.model), engine_of(prepared)
    start, fresh = layout.flatten(prepared.model)
    server, _ = server_on(prepared)

    expected = []
    for client in server.federation.cohort(1):
        plan = engine.stacks.schedule(1, client)
        batches = engine.train_data.batches([plan])
        model, lr = prepared.model.train(), prepared.federation.lrs[0]
        layout.load(model, start, fresh)
        for k in range(len(plan.sizes)):
            w, _ = layout.flatten(model)
            gradient = plain_gradient(model, batches(k))
            buffers = layout.flatten(model)[1]
            if rho:
                layout.load(model, w + rho * gradient / gradient.norm(), buffers)
                gradient = plain_gradient(model, batches(k))
            layout.load(model, w - lr * gradient, buffers)
        expected.append(layout.flatten(model)[1])
    mean = torch.stack(expected).mean(0)
    assert not torch.allclose(mean, fresh, atol=0.01)
    torch.testing.assert_close(server.buffers, mean, rtol=1e-5, atol=1e-5)


def engine_of(prepared) -> Engine:
    data, partition = prepared.data, prepared.partition
    return Engine(
        prepared.model, prepared.config.algorithm, data, partition, prepared.settings, "cpu"
    )


def plain_gradient(model: nn.Module, batch) -> torch.Tensor:
    model.zero_grad()
    F.cross_entropy(model(batch.inputs[0]), batch.targets[0]).backward()
    parameters = dict(model.named_parameters())
    layout = Layout(model)
    gradient = torch.zeros(layout.size)
    for slot in layout.parameters:
        slot.view(gradient).copy_(parameters[slot.name].grad)
    return gradient


@pytest.mark.slow
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
