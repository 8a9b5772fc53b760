import numpy as np
import pytest
import torch
from torch import nn

from rayfl.algorithms.fedwmsam_released import first_entries
from rayfl.models.lenet import LeNet5
from rayfl.models.mlp import MLP
from rayfl.models.resnet import ResNet18
from rayfl.training.flat import Layout, views


def batch_norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)
    )


class Tied(nn.Module):
    """An encoder and a decoder that share their weight."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x).relu())


SHAPE = (3, 16, 16)
BUILDERS = {
    "mlp": lambda: MLP(hidden=(7,)).build(SHAPE, 5),
    "lenet5": lambda: LeNet5().build(SHAPE, 5),
    "batch_norm": batch_norm_net,
}


def built(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = BUILDERS[name]()
    model(torch.randn(4, *SHAPE))  # moves batch statistics
    return model


@pytest.mark.parametrize("name", BUILDERS)
def test_flatten_then_load_moves_the_whole_model(name):
    source, target = built(name, 1), built(name, 2)
    x = torch.randn(2, *SHAPE)
    assert not torch.equal(source.eval()(x), target.eval()(x))
    Layout(target).load(target, *Layout(source).flatten(source))
    assert torch.equal(source(x), target(x))


def test_flatten_then_load_moves_a_resnet():
    source, target = (ResNet18().build(SHAPE, 5) for _ in range(2))
    Layout(target).load(target, *Layout(source).flatten(source))
    assert all(map(torch.equal, source.parameters(), target.parameters()))


@pytest.mark.parametrize("name", BUILDERS)
def test_load_then_flatten_gives_the_vectors_back(name):
    model = built(name, 0)
    layout = Layout(model)
    w, buffers = (torch.randn_like(flat) for flat in layout.flatten(model))
    layout.load(model, w, buffers)
    assert all(map(torch.equal, layout.flatten(model), (w, buffers)))
    assert layout.size == len(w) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_a_loaded_state_dict_fits_the_plain_module(name):
    model, plain = built(name, 1), built(name, 2)
    layout = Layout(model)
    layout.load(model, *(torch.rand_like(flat) for flat in layout.flatten(model)))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_flatten_copies():
    model = built("mlp", 0)
    w, _ = Layout(model).flatten(model)
    before = w.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(w, before)


@pytest.mark.parametrize("name", BUILDERS)
def test_views_share_the_vectors_memory_and_cover_it_once(name):
    model = built(name, 0)
    layout = Layout(model)
    flat = torch.zeros(layout.size)
    shaped = views(layout.parameters, flat)
    parameters = dict(model.named_parameters())
    assert {n: v.shape for n, v in shaped.items()} == {n: p.shape for n, p in parameters.items()}
    for view in shaped.values():
        assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        view.add_(1)
    assert torch.equal(flat, torch.ones(layout.size))


def test_weights_of_convolutions_lie_channels_last():
    model = built("lenet5", 0)
    layout = Layout(model)
    w, _ = layout.flatten(model)
    shaped = views(layout.parameters, w)
    convolutions = [name for name, view in shaped.items() if view.dim() == 4]
    assert len(convolutions) == 2
    for name in convolutions:
        assert shaped[name].is_contiguous(memory_format=torch.channels_last)
        parameter = dict(model.named_parameters())[name].detach()
        assert torch.equal(shaped[name], parameter)
        at = next(slot.offset for slot in layout.parameters if slot.name == name)
        stored = w[at : at + parameter.numel()].numpy()
        np.testing.assert_array_equal(stored, parameter.permute(0, 2, 3, 1).numpy().ravel())


def test_frozen_parameters_are_left_out():
    model = built("lenet5", 0)
    for parameter in list(model.parameters())[:4]:
        parameter.requires_grad_(False)
    layout = Layout(model)
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    assert layout.size == sum(p.numel() for p in model.parameters() if p.requires_grad)
    w, buffers = layout.flatten(model)
    layout.load(model, torch.zeros_like(w), buffers)
    now = list(model.parameters())
    assert all(map(torch.equal, now[:4], frozen))
    assert not any(parameter.any() for parameter in now[4:])


def test_buffers_are_the_floating_point_ones():
    model = built("batch_norm", 0)
    layout = Layout(model)
    assert [slot.name for slot in layout.buffers] == ["1.running_mean", "1.running_var"]
    _, buffers = layout.flatten(model)
    assert torch.equal(buffers, torch.cat([model[1].running_mean, model[1].running_var]))
    _, none = Layout(built("mlp", 0)).flatten(built("mlp", 0))
    assert none.shape == (0,)


def test_a_shared_weight_lies_in_the_vector_once():
    model = Tied()
    layout = Layout(model)
    assert layout.size == 6 * 6 + 6 + 6
    layout.load(model, torch.ones(layout.size), torch.zeros(0))
    assert model.decoder.weight is model.encoder.weight
    assert (model.decoder.weight == 1).all()


@pytest.mark.parametrize(
    "build", [*BUILDERS.values(), lambda: ResNet18().build(SHAPE, 5)], ids=[*BUILDERS, "resnet18"]
)
def test_first_entries_are_those_of_torchs_own_order(build):
    """If a convolution comes first, they are not the flat vector's first entries."""
    model = build()
    w, _ = Layout(model).flatten(model)
    parameters = list(model.parameters())
    expected = torch.cat([p.detach().reshape(-1) for p in parameters])[: len(parameters)]
    layout = tuple(Layout(model).parameters)
    assert torch.equal(first_entries(w, layout), expected)
    first = first_entries(torch.arange(len(w)).expand(2, -1), layout)[1]
    convolution = parameters[0].dim() == 4
    assert torch.equal(first, torch.arange(len(parameters))) != convolution


def test_first_entries_go_on_into_the_next_tensors():
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Conv2d(1, 1, 2), nn.Conv2d(1, 2, 1))
    layout = Layout(model)
    first = first_entries(torch.arange(layout.size), tuple(layout.parameters))
    assert first.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_parameter_of_no_dimensions_is_one_entry():
    model = nn.Linear(2, 1)
    model.scale = nn.Parameter(torch.tensor(3.0))
    layout = Layout(model)
    w, _ = layout.flatten(model)
    assert views(layout.parameters, w)["scale"].shape == ()
    assert views(layout.parameters, w.expand(4, -1))["scale"].tolist() == [3.0] * 4
    layout.load(model, w + 1, torch.empty(0))
    assert model.scale == 4
