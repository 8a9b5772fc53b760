"""A model is any module that plain PyTorch trains: rayfl's parameters are those of a plain loop."""

from functools import cache

import numpy as np
import pytest
import torch
import zoo
from conftest import rarely
from local_pool import a_server
from torch import nn
from torch.nn import functional as F

from rayfl import load_config, seeds
from rayfl.data.federated import federate
from rayfl.errors import ConfigError
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.training.batches import DeviceData, batch_schedule
from rayfl.training.flat import Layout
from rayfl.training.function import channels_first
from rayfl.training.units import Broadcast

CLIENTS, STEPS, BATCH, LR = 2, 3, 8, 0.05


def config(model, rho=0.0):
    return load_config(
        {
            "seed": 3,
            "partition": {"name": "iid"},
            "model": {"name": f"zoo:{model.__name__}"},
            "algorithm": {"name": "fedsam", "rho": rho} if rho else {"name": "fedavg"},
            "federation": {
                **{"clients": CLIENTS, "cohort": CLIENTS, "rounds": 1, "lr": LR},
                **{"local_steps": STEPS, "batch_size": BATCH},
            },
            "tracking": {"enabled": False},
            "checkpoint": {"every": None},
        }
    )


@cache
def digits():
    c = config(zoo.tied)
    return federate(c.data.load(), c.partition, c.heterogeneity, CLIENTS, c.seed)


def trained_plainly(prepared: Prepared, rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the clients' parameters and buffers, each trained on its own by a plain loop."""
    model, layout = prepared.model, Layout(prepared.model)
    w, buffers = layout.flatten(model)
    integers = {n: b.clone() for n, b in model.named_buffers() if not b.is_floating_point()}
    data, ends = DeviceData(prepared.data, "train", torch.device("cpu")), []

    def restore():
        layout.load(model, w, buffers)
        for name, buffer in model.named_buffers():
            if name in integers:
                buffer.copy_(integers[name])

    for client in range(CLIENTS):
        restore()
        torch.manual_seed(seeds.integer(3, "model", 1, client))
        drawn = batch_schedule(
            prepared.partition.client(client), BATCH, STEPS, 3, 1, client, "none", 0
        )
        for indices in torch.from_numpy(drawn.indices):
            images = channels_first(data.preprocess(indices, None, None))
            model.train()
            plain_step(model, images, data.y[indices], rho)
        ends.append(layout.flatten(model))
    restore()
    new_w, new_buffers = (torch.stack(parts).mean(0) for parts in zip(*ends, strict=True))
    return new_w, new_buffers


def plain_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, rho: float) -> None:
    """SGD, or SAM by the book: climb, take the gradient there, come back; statistics move once."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    F.cross_entropy(model(channels_first(images)), labels).backward()
    if rho:
        trained = [p for p in model.parameters() if p.grad is not None]
        statistics = {name: b.clone() for name, b in model.named_buffers()}
        before = [p.detach().clone() for p in trained]
        norm = torch.cat([p.grad.flatten() for p in trained]).norm()
        with torch.no_grad():
            for p in trained:
                p.add_(p.grad, alpha=rho / norm)
        optimizer.zero_grad()
        F.cross_entropy(model(channels_first(images)), labels).backward()
        with torch.no_grad():
            for p, value in zip(trained, before, strict=True):
                p.copy_(value)
            for name, buffer in model.named_buffers():
                buffer.copy_(statistics[name])
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("rho", [*rarely([0.0]), 0.05], ids=["fedavg", "fedsam"])
@pytest.mark.parametrize(
    "model", [*zoo.TRAINABLE[::2], *rarely(zoo.TRAINABLE[1::2])], ids=lambda model: model.__name__
)
def test_what_is_trained_is_what_a_plain_loop_trains(model, rho):
    prepared = prepare(config(model, rho), *digits())
    expected, buffers = trained_plainly(prepared, rho)
    first = Layout(prepared.model).flatten(prepared.model)[0]
    assert (expected - first).norm() > 1e-3
    server = a_server(prepared)
    records = list(server.run())
    torch.testing.assert_close(server.w, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(server.buffers, buffers, rtol=0, atol=1e-6)

    plain = prepared.model
    Layout(plain).load(plain, server.w, server.buffers)
    data = DeviceData(prepared.data, "test", torch.device("cpu"))
    images = channels_first(data.preprocess(torch.arange(len(data)), None, None))
    plain.eval()
    with torch.no_grad():
        logits = plain(images)
    loss = float(F.cross_entropy(logits, data.y))
    accuracy = float((logits.argmax(1) == data.y).float().mean())
    assert records[-1].values["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert records[-1].values["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("model", zoo.REFUSED, ids=lambda model: model.__name__)
def test_what_cannot_be_trained_is_refused_in_one_line(model):
    overrides = {"batch_size": 1} if model is zoo.squeezes else {}
    c = config(model)
    c = c.model_copy(update={"federation": c.federation.model_copy(update=overrides)})
    with pytest.raises(ConfigError, match=zoo.REFUSED[model]) as refused:
        prepare(c, *digits())
    assert str(refused.value).startswith(f"model.name = 'zoo:{model.__name__}': ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model", [zoo.logits_in_bfloat16, zoo.sparse_gradients])
def test_models_that_round_are_trained_too(model):
    """As plain PyTorch does, but not to 1e-6: sums over many pixels come in another order."""
    assert not shortcuts(model).dropped


def shortcuts(model):
    return prepare(config(model), *digits()).settings.shortcuts


def test_short_cuts_are_taken_where_they_change_nothing():
    """Else all of the above could pass because none is taken any more."""
    assert shortcuts(zoo.in_place_layers).channels_last
    assert prepare(config(zoo.tied), *digits()).settings.shortcuts.dropped == ()
    assert list(shortcuts(zoo.maps_of_one_pixel).crops) == ["3.weight"]
    assert list(shortcuts(zoo.named_input).crops) == ["conv.weight"]
    assert shortcuts(zoo.batch_norm).channels_last
    assert shortcuts(zoo.dropout).shares_inputs
    chain = load_config({"federation": {"cohort": 2, "local_steps": 1}, "model": {"name": "mlp"}})
    assert prepare(chain).settings.shortcuts.dense


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (zoo.views_maps_as_rows, "channels first in memory: channels last, it fails .view size"),
        (zoo.shared_kernel, "kernels are not cropped"),
        (zoo.other_maps_in_evaluation, "kernels are not cropped"),
        (zoo.hook_on_a_cropped_kernel, "kernels are not cropped"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_short_cut_that_changes_something_is_dropped_and_named(model, says):
    found = shortcuts(model)
    assert len(found.dropped) == 1
    assert says.replace(".", "(") in found.dropped[0]


def test_checking_leaves_the_model_and_the_generators_alone():
    before, drawn = prepare(config(zoo.lazy), *digits()).model, torch.random.get_rng_state()
    after = prepare(config(zoo.lazy), *digits()).model
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert after.training
    state, other = before.state_dict(), after.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert {t.dtype for t in other.values()} == {torch.float32, torch.int64}
    assert not np.isclose(float(after[1].running_var.mean()), 0)
    assert all(p.grad is None for p in after.parameters())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("zoo:maps_of_one_pixel", None),
        ("zoo:batch_norm", r"in a stack its buffers \(1\.running_mean, \.\.\.\) change"),
        ("zoo:dropout", "in a stack it fails .*random"),
        ("zoo:hook_by_norm", "in a stack the gradient of '1.weight' differs by"),
    ],
)
def test_a_stack_that_would_change_something_is_refused(model, why):
    """Also where the passes succeed: a hook that divides by the norm of all clients' gradients, say."""
    c = config(zoo.tied).model_dump(mode="json")
    c["model"], c["federation"]["stack"] = {"name": model}, 2
    if why is None:
        assert prepare(load_config(c), *digits()).settings.shortcuts.crops
        return
    with pytest.raises(ConfigError, match=rf"federation\.stack = 2: .*{why}"):
        prepare(load_config(c), *digits())


@pytest.mark.slow
def test_batch_norm_of_maps_of_one_pixel_needs_two_samples():
    """`group` does not, and larger maps do not."""
    c = config(zoo.tied).model_dump(mode="json")
    c["federation"]["batch_size"] = 1
    for fine in ({"name": "resnet18", "norm": "group"}, {"name": "zoo:batch_norm"}):
        c["model"] = fine
        prepare(load_config(c), *digits())
    c["model"] = {"name": "resnet18", "norm": "batch"}
    with pytest.raises(
        ConfigError, match=r"'resnet18': cannot take a batch of one sample in training"
    ):
        prepare(load_config(c), *digits())


def test_a_model_that_draws_in_evaluation_draws_the_same_for_the_same_samples():
    """Whichever actor evaluates them, and whatever it did before."""
    server = a_server(prepare(config(zoo.draws_in_evaluation), *digits()))
    engine = server.pool.client.engine
    broadcast = Broadcast(server.w.numpy(), {}, server.buffers.numpy())
    losses = [engine.evaluate(broadcast, "test", first, first + 50).loss for first in (0, 50, 0)]
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]
