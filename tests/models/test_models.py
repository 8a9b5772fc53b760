import dataclasses
import subprocess
import sys
from functools import partial

import pytest
import torch
import torchvision
from conftest import rarely
from small_swin import SmallSwin
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.ops import StochasticDepth

from rayfl.errors import ConfigError
from rayfl.models import MODELS, Factory, Model, build
from rayfl.models.lenet import LeNet5, LeNet5Small
from rayfl.models.lora import LoRA
from rayfl.models.mlp import MLP
from rayfl.models.resnet import ResNet18, ResNet34, ResNet50
from rayfl.models.transformer import SwinT, ViTTiny
from rayfl.models.vgg import VGG11

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
        (LeNet5Small(), CIFAR, 10, 62_006),
        (ResNet18(), CIFAR, 10, 11_181_642),
        (ResNet18(), CIFAR, 100, 11_227_812),
        (ResNet18(stem="cifar"), CIFAR, 10, 11_173_962),
        (ResNet18(stem="cifar"), CIFAR, 100, 11_220_132),
        (ResNet18(stem="cifar"), (3, 64, 64), 200, 11_271_432),
        (ResNet18(norm="batch"), CIFAR, 10, 11_181_642),
        (ResNet34(), CIFAR, 100, 21_335_972),
        (ResNet50(), (3, 224, 224), 65, 23_641_217),
        (VGG11(), CIFAR, 10, 9_272_790),
        (VGG11(), CIFAR, 100, 9_377_508),
        (ViTTiny(), CIFAR, 10, 2_693_578),
        (ViTTiny(), CIFAR, 100, 2_710_948),
    ],
)
def test_parameter_counts_are_the_published_ones(model, sample_shape, classes, count):
    with torch.device("meta"):
        assert parameter_count(model.build(sample_shape, classes)) == count


@pytest.mark.parametrize("name", [n for n in MODELS if getattr(MODELS[n], "published", None)])
def test_architectures_are_torchvisions(name):
    """Their names and shapes, with batch normalisation where it has some: its weights fit."""
    spec = MODELS[name](**({"norm": "batch"} if name.startswith("resnet") else {}))
    with torch.device("meta"):
        ours = spec.build((3, 224, 224), 1000)
        theirs = torchvision.models.get_model(name)
    assert parameter_count(ours) == get_model_weights(name).DEFAULT.meta["num_params"]
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    drops = [
        [part.p for part in m.modules() if isinstance(part, StochasticDepth)]
        for m in (ours, theirs)
    ]
    assert drops[0] == drops[1]


# One of each family, small: the others differ in numbers alone.
SMALL = {
    "lenet5": LeNet5(),
    "lenet5_small": LeNet5Small(),
    "mlp": MLP(),
    "resnet18": ResNet18(),
    "resnet18 with batch norm": ResNet18(norm="batch"),
    "swin": SmallSwin(),
    "vgg11": VGG11(),
    "vit_tiny": ViTTiny(),
}


def images_for(name, sample_shape):
    """VGG takes no images below 32 x 32."""
    return (sample_shape[0], 40, 33) if name == "vgg11" else sample_shape


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("sample_shape", [(4, 20, 33), *rarely([(1, 28, 28), (3, 16, 16)])])
def test_fits_any_image(name, sample_shape):
    sample_shape = images_for(name, sample_shape)
    model = build(SMALL[name], sample_shape, 7, seed=0)
    assert model(torch.rand(3, *sample_shape)).shape == (3, 7)


@pytest.mark.parametrize("spec", [MLP(), ViTTiny(lora=LoRA()), *rarely(SMALL.values())], ids=str)
def test_only_the_seed_decides_the_weights(spec):
    torch.manual_seed(1)
    first = state(build(spec, CIFAR, 10, seed=3))
    torch.manual_seed(2)
    again = state(build(spec, CIFAR, 10, seed=3))
    other = state(build(spec, CIFAR, 10, seed=4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_leaves_the_callers_random_state_alone():
    before = torch.random.get_rng_state()
    build(MLP(), (4,), 3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", MODELS)
def test_is_a_frozen_dataclass_with_defaults(name):
    model = MODELS[name](**{"path": "of/weights"} if name == "hf" else {})
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


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("spec", [ResNet18, *rarely([ResNet34, ResNet50])])
def test_resnets_are_those_of_torchvision(spec, norm):
    layer = nn.BatchNorm2d if norm == "batch" else partial(nn.GroupNorm, 2)
    torch.manual_seed(0)
    ours = spec(norm=norm).build(CIFAR, 10)
    torch.manual_seed(0)
    theirs = get_model(spec.name, num_classes=10, norm_layer=layer)
    x = torch.randn(4, *CIFAR)
    assert torch.equal(ours(x), theirs(x))
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    assert list(ours_state) == list(theirs_state)
    assert all(torch.equal(ours_state[name], theirs_state[name]) for name in ours_state)


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
        (LeNet5Small(), (30,), r"model\.name = 'lenet5_small'.*\[30\]"),
        (ResNet18(), (30,), r"model\.name = 'resnet18'.*\[30\]"),
        (ViTTiny(), (30,), r"model\.name = 'vit_tiny'.*\[30\]"),
        (SwinT(), (30,), r"model\.name = 'swin_t'.*\[30\]"),
        (VGG11(), (3, 31, 32), r"model\.name = 'vgg11'.*32 x 32.*\[3, 31, 32\]"),
        (ViTTiny(image_size=30), CIFAR, r"model\.image_size = 30: must be a multiple of 4"),
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


def exits(num_classes: int) -> nn.Module:
    raise SystemExit("usage: ...")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (factory(exits), r"exits': fails on samples .*\(SystemExit: usage: \.\.\.\)"),
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


@pytest.mark.slow
def test_a_plain_model_imports_nothing_that_takes_seconds():
    """In any process that knows the client actor and the whole experiment."""
    code = """if True:
        import sys
        import rayfl.experiment, rayfl.runtime.client
        from rayfl import models
        for name in ("mlp", "lenet5", "resnet18"):
            model = models.build(models.MODELS[name](), (3, 32, 32), 10, seed=0)
            models.plain_state_dict(model)
        print(*{"torchvision", "torch._dynamo", "peft", "transformers"} & sys.modules.keys())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


def test_images_are_resized_inside_the_model_and_parameters_keep_their_names():
    model = build(ResNet18(norm="batch", image_size=20), (3, 9, 12), 5, seed=0).eval()
    plain = build(ResNet18(norm="batch"), (3, 20, 20), 5, seed=0).eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    images = torch.rand(2, 3, 9, 12)
    larger = nn.functional.interpolate(images, (20, 20), mode="bilinear", antialias=True)
    torch.testing.assert_close(model(images), plain(larger))
    torch.testing.assert_close(model(larger), plain(larger))
