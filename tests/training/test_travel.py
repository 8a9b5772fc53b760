"""A model that has travelled computes what it computed, from weights that come another way."""

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from rayfl.models.lenet import LeNet5
from rayfl.models.mlp import MLP
from rayfl.models.resnet import ResNet18
from rayfl.training.flat import Layout, views
from rayfl.training.travel import packed, unpacked

SHAPE = (3, 16, 16)


class Listening(nn.Module):
    """Computes with what a hook of its own layer has heard: the hook's function refers to the model."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(768, 8), nn.Linear(8, 5)
        self.heard = torch.zeros(())

        def listen(module, inputs, output):
            self.heard = output

        self.body.register_forward_hook(listen)

    def forward(self, x):
        self.body(x.flatten(1))
        return self.head(self.heard)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(768, 5), nn.Linear(768, 5)
        self.decoder.weight = self.encoder.weight
        self.encoder.bias.requires_grad_(False)

    def forward(self, x):
        return self.decoder(x.flatten(1)) + self.encoder(x.flatten(1))


MODELS = {
    "mlp": lambda: MLP(hidden=(7,)).build(SHAPE, 5),
    "lenet5": lambda: LeNet5().build(SHAPE, 5),
    "resnet18": lambda: ResNet18(norm="batch").build(SHAPE, 5),
    "parametrized": lambda: nn.Sequential(
        nn.Flatten(), weight_norm(nn.Linear(768, 8)), spectral_norm(nn.Linear(8, 5))
    ),
    "listening": Listening,
    "tied": Tied,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_arrives_small_and_computes_the_same_from_given_weights(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        model(torch.randn(4, *SHAPE))
    model.eval()
    layout, parcel = Layout(model), packed(model)
    arrived = unpacked(parcel)
    assert len(parcel) < 100_000
    assert not any(p.any() for p in arrived.parameters() if p.requires_grad)
    w, buffers = layout.flatten(model)
    tensors = views(layout.parameters, w) | views(layout.buffers, buffers)
    x = torch.randn(2, *SHAPE)
    # Convolutions round differently where weights lie channels-last.
    found = functional_call(arrived, tensors, (x,))
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


def test_packing_leaves_the_model_as_it_was():
    model = Tied()
    hook = model.encoder.weight.register_hook(lambda gradient: gradient)
    before = {name: (p, p.clone()) for name, p in model.named_parameters()}
    packed(model)
    for name, p in model.named_parameters():
        was, value = before[name]
        assert p is was
        assert torch.equal(p, value)
    assert model.encoder.weight._backward_hooks
    hook.remove()


def test_what_is_frozen_and_what_is_tied_stays_so():
    model = Tied()
    arrived = unpacked(packed(model))
    assert torch.equal(arrived.encoder.bias, model.encoder.bias)
    assert arrived.decoder.weight is arrived.encoder.weight


@pytest.mark.slow
def test_parametrized_layers_arrive_in_another_process(tmp_path):
    """PyTorch refuses to pickle them; their class exists only where they were made."""
    (tmp_path / "parcel").write_bytes(packed(MODELS["parametrized"]()))
    script = """
import sys
from rayfl.training.travel import unpacked
model = unpacked(open(sys.argv[1], "rb").read())
print(sorted(name for name, _ in model.named_parameters()))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "parcel")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1.parametrizations.weight.original0" in done.stdout


def test_what_does_not_pickle_is_an_error():
    model = nn.Linear(2, 2)
    model.stream = (i for i in range(3))
    with pytest.raises((TypeError, pickle.PicklingError), match="generator"):
        packed(model)
