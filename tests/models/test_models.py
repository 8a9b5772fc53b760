import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

from rayfl.errors import ConfigError
from rayfl.models import MODELS, Factory, Model, build
from rayfl.models.lenet import LeNet5
from rayfl.models.mlp import MLP
from rayfl.models.resnet import ResNet18

CIFAR = (3, 32, 32)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def state(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


@pytest.mark.parametrize(
    ("model", "sample_shape", "classes", "count"),
    [
        (MLP(), (784,), 10, 784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10),
        (MLP(hidden=()), (1, 8, 8), 10, 64 * 10 + 10),
        (LeNet5(), CIFAR, 10, 797_962),
        (LeNet5(), CIFAR, 100, 815_332),
        (ResNet18(), CIFAR, 10, 11_181_642),
        (ResNet18(), CIFAR, 100, 11_227_812),
        (ResNet18(stem="cifar"), CIFAR, 10, 11_173_962),
        (ResNet18(stem="cifar"), CIFAR, 100, 11_220_132),
        (ResNet18(stem="cifar"), (3, 64, 64), 200, 11_271_432),
    ],
)
def test_parameter_counts_are_the_published_ones(model, sample_shape, classes, count):
    assert parameter_count(build(model, sample_shape, classes, seed=0)) == count


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sample_shape", [(1, 28, 28), (3, 16, 16), (4, 20, 33)])
def test_fits_any_image(name, sample_shape):
    model = build(MODELS[name](), sample_shape, 7, seed=0)
    assert model(torch.rand(3, *sample_shape)).shape == (3, 7)


@pytest.mark.parametrize("name", MODELS)
def test_only_the_seed_decides_the_weights(name):
    torch.manual_seed(1)
    first = state(build(MODELS[name](), CIFAR, 10, seed=3))
    torch.manual_seed(2)
    again = state(build(MODELS[name](), CIFAR, 10, seed=3))
    other = state(build(MODELS[name](), CIFAR, 10, seed=4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_leaves_the_callers_random_state_alone():
    before = torch.random.get_rng_state()
    build(MLP(), (4,), 3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", MODELS)
def test_is_a_frozen_dataclass_with_defaults(name):
    model = MODELS[name]()
    assert isinstance(model, Model)
    assert hash(model) == hash(dataclasses.replace(model))


def test_lenet_pools_before_the_relu_without_changing_the_result():
    model = build(LeNet5(), CIFAR, 10, seed=0)
    assert isinstance(model, nn.Sequential)
    layers = list(model)
    assert [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)] == [1, 4]
    for i in (1, 4):
        layers[i], layers[i + 1] = layers[i + 1], layers[i]
    x = torch.randn(4, *CIFAR)
    assert torch.equal(nn.Sequential(*layers)(x), model(x))


def test_resnet_has_group_norm_only():
    norms = [
        module
        for module in build(ResNet18(groups=4), CIFAR, 10, seed=0).modules()
        if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase)
    ]
    assert len(norms) == 20
    assert all(isinstance(norm, nn.GroupNorm) and norm.num_groups == 4 for norm in norms)


def test_resnet_stems_differ_in_resolution():
    for stem, side in (("torchvision", 8), ("cifar", 32)):
        model = build(ResNet18(stem=stem), CIFAR, 10, seed=0)
        features = model.get_submodule("maxpool")(
            model.get_submodule("conv1")(torch.ones(1, *CIFAR))
        )
        assert features.shape == (1, 64, side, side)


@pytest.mark.parametrize(
    ("model", "sample_shape", "message"),
    [
        (LeNet5(), (3, 15, 32), r"model\.name = 'lenet5'.*16 x 16.*\[3, 15, 32\]"),
        (LeNet5(), (30,), r"model\.name = 'lenet5'.*\[30\]"),
        (ResNet18(), (30,), r"model\.name = 'resnet18'.*\[30\]"),
    ],
)
def test_refuses_data_that_do_not_fit(model, sample_shape, message):
    with pytest.raises(ConfigError, match=message):
        build(model, sample_shape, 10, seed=0)


class BatchNormNet(nn.Module):
    """A user's model, with buffers and dropout."""

    def __init__(self, num_classes: int, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.Dropout(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def factory(function, **options) -> Factory:
    return Factory(path=f"{__name__}:{function.__name__}", factory=function, options=options)


def test_factory_passes_the_options_on():
    model = build(factory(BatchNormNet, width=5), CIFAR, 10, seed=0)
    assert parameter_count(model) == (3 * 9 * 5 + 5) + 2 * 5 + (5 * 10 + 10)


def test_the_trial_leaves_no_trace():
    model = build(factory(BatchNormNet), CIFAR, 10, seed=0)
    buffers = dict(model.named_buffers())
    assert model.training
    assert buffers["layers.1.num_batches_tracked"] == 0
    assert torch.equal(buffers["layers.1.running_mean"], torch.zeros(8))
    assert all(parameter.grad is None for parameter in model.parameters())


def wrong_output(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes + 1))


def no_tensor(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LSTM(12, num_classes))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (factory(wrong_output), r"wrong_output'.*must give.*\(2, 10\), it gives \(2, 11\)"),
        (factory(no_tensor), r"no_tensor'.*must give.*\(2, 10\), it gives tuple"),
        (factory(BatchNormNet), r"BatchNormNet': fails on samples \[3, 2, 2\].*RuntimeError"),
        (factory(BatchNormNet, size=3), r"BatchNormNet': .*unexpected keyword argument 'size'"),
    ],
)
def test_a_factory_that_does_not_fit_is_a_config_error(model, message):
    with pytest.raises(ConfigError, match=message) as error:
        build(model, (3, 2, 2), 10, seed=0)
    assert "\n" not in str(error.value)
    assert f"model.name = '{__name__}:" in str(error.value)


def test_torchvision_models_work_by_import_path():
    from torchvision.models import squeezenet1_1

    model = build(factory(squeezenet1_1), (3, 64, 64), 10, seed=0)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 10)


def test_importing_the_models_does_not_import_torchvision():
    code = "import sys, rayfl.models; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
