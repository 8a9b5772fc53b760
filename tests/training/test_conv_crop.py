"""Dead taps: which they are, and that leaving them out changes nothing."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rayfl.models.lenet import LeNet5
from rayfl.models.resnet import ResNet18
from rayfl.training.batches import Minibatch
from rayfl.training.conv_crop import crop, cropped, find_crops
from rayfl.training.flat import Layout, views
from rayfl.training.function import Function, Shortcuts
from rayfl.training.gradients import PerClientGradient

AXIS = st.tuples(
    st.integers(1, 6),  # size of the map
    st.integers(1, 5),  # kernel
    st.integers(1, 3),  # stride
    st.integers(0, 3),  # padding
    st.integers(1, 2),  # dilation
)


def names(model: nn.Module) -> list[str]:
    return [slot.name for slot in Layout(model).parameters]


@settings(deadline=None, max_examples=100)
@given(AXIS, AXIS)
def test_what_is_left_out_is_what_has_no_gradient(rows, columns):
    """A box is smaller than its kernel and holds every tap that has a gradient."""
    sizes, *geometry = zip(rows, columns, strict=True)
    kernel, stride, padding, dilation = geometry
    for size, k, _, p, d in (rows, columns):
        assume(size + 2 * p >= d * (k - 1) + 1)
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, kernel, stride, padding, dilation, dtype=torch.float64)
    model = nn.Sequential(conv)
    x = torch.rand(4, 2, *sizes, dtype=torch.float64) + 0.5
    expected = model(x)
    expected.square().sum().backward()
    assert conv.weight.grad is not None
    live = conv.weight.grad.abs().sum((0, 1)) > 0
    crops = find_crops(model, x, names(model))
    parameters = dict(model.named_parameters())
    outputs = torch.func.functional_call(cropped(model, crops), crop(parameters, crops), (x,))
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    if crops:
        row, column, _ = crops["0.weight"]
        assert live.sum() == live[row, column].sum()
        assert live[row, column].numel() < live.numel()


def test_most_of_resnet18_is_dead_on_small_images():
    model = ResNet18().build((3, 32, 32), 10)
    crops = find_crops(model, torch.zeros(1, 3, 32, 32), names(model))
    centre, corner = slice(1, 2), slice(1, 3)
    assert crops == {
        "layer4.0.conv1.weight": (corner, corner, (0, 0)),
        "layer4.0.conv2.weight": (centre, centre, (0, 0)),
        "layer4.1.conv1.weight": (centre, centre, (0, 0)),
        "layer4.1.conv2.weight": (centre, centre, (0, 0)),
    }
    smaller = cropped(model, crops)
    left = sum(view.numel() for view in crop(dict(model.named_parameters()), crops).values())
    assert left == 4_234_826
    assert smaller.get_submodule("layer4.1.conv2").padding == (0, 0)
    assert model.get_submodule("layer4.1.conv2").padding == (1, 1)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: LeNet5().build((3, 32, 32), 10), (3, 32, 32)),
        (lambda: ResNet18(stem="cifar").build((3, 32, 32), 10), (3, 32, 32)),
        (lambda: ResNet18().build((3, 224, 224), 10), (3, 224, 224)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), (3,)),
    ],
)
def test_where_every_tap_lives_the_model_stays_itself(build, shape):
    model = build()
    crops = find_crops(model, torch.zeros(1, *shape), names(model))
    assert crops == {}
    assert cropped(model, crops) is model


class Tied(nn.Module):
    """One kernel on maps of two sizes, in one layer that runs twice and in two layers that share it."""

    def __init__(self, twice: bool):
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.second = self.first if twice else nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(F.adaptive_avg_pool2d(self.first(x), 1))


@pytest.mark.parametrize("twice", [True, False])
def test_kernels_that_meet_maps_of_two_sizes_stay_whole(twice):
    model = Tied(twice)
    assert find_crops(model, torch.zeros(1, 2, 4, 4), names(model)) == {}


def test_frozen_kernels_stay_whole():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False), nn.Flatten())
    assert find_crops(model, torch.zeros(1, 2, 1, 1), names(model)) == {}


def test_looking_leaves_statistics_and_mode_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    crops = find_crops(model, torch.zeros(1, 1, 1, 1), names(model))
    smaller = cropped(model, crops)
    assert crops
    assert model.training
    assert smaller.training
    for state in (model.state_dict(), smaller.state_dict()):
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_gradient_and_the_statistics_are_those_of_the_whole_model(norm):
    torch.manual_seed(0)
    model = ResNet18(norm=norm).build((3, 32, 32), 10).double()
    layout = Layout(model)
    w, buffers = (flat.double() for flat in layout.flatten(model))
    crops = find_crops(model.float(), torch.zeros(1, 3, 32, 32), names(model))
    smaller = cropped(model, crops)
    whole, live = (
        PerClientGradient(Function(model.double(), layout)),
        PerClientGradient(Function(smaller.double(), layout, Shortcuts(crops=crops))),
    )
    x = torch.rand(1, 4, 3, 32, 32, dtype=torch.float64)
    batch = Minibatch(inputs=x, targets=torch.randint(10, (1, 4)), weights=None)
    results = []
    for oracle in (whole, live):
        own = buffers.clone()
        oracle.begin_client(own)
        results.append((*oracle(w.unsqueeze(0), batch), own))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    dead = views(layout.parameters, results[1][0][0])["layer4.1.conv2.weight"].clone()
    dead[:, :, 1, 1] = 0
    assert not dead.any()
