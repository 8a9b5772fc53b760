"""Model names -> `nn.Module`s that map samples [n, *sample_shape] to outputs.

Outputs are logits [n, num_classes], those of a token at each position [n, L, num_classes], or numbers
[n, num_classes].
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rayfl.errors import ConfigError, reason
from rayfl.models import lora
from rayfl.models.base import Model
from rayfl.models.huggingface import HuggingFaceModel
from rayfl.models.lenet import LeNet5, LeNet5Small
from rayfl.models.mlp import MLP
from rayfl.models.recurrent import GRU, LSTM
from rayfl.models.resnet import ResNet18, ResNet34, ResNet50
from rayfl.models.text_transformer import TextTransformer
from rayfl.models.tokens import TokenModel, Tokens
from rayfl.models.transformer import SwinB, SwinS, SwinT, ViTB16, ViTTiny
from rayfl.models.vgg import VGG11
from rayfl.seeds import integer

__all__ = [
    "MODELS",
    "Factory",
    "Model",
    "TokenModel",
    "Tokens",
    "build",
    "name_of",
    "plain_state_dict",
]


MODELS: dict[str, type[Model]] = {
    "gru": GRU,
    "hf": HuggingFaceModel,
    "lenet5": LeNet5,
    "lenet5_small": LeNet5Small,
    "lstm": LSTM,
    "mlp": MLP,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "swin_b": SwinB,
    "swin_s": SwinS,
    "swin_t": SwinT,
    "text_transformer": TextTransformer,
    "vgg11": VGG11,
    "vit_b_16": ViTB16,
    "vit_tiny": ViTTiny,
}


@dataclass(frozen=True, kw_only=True)
class Factory(Model):
    """Any function that makes a model; it is called with `num_classes` and the options, but for `init`."""

    path: str  # `package.module:function`, for messages
    factory: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, sample_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return self.factory(num_classes=num_classes, **self.options)


def build(
    spec: Model,
    sample_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    trial: torch.Tensor | None = None,
    tokens: Tokens | None = None,
) -> nn.Module:
    """Build the model on the CPU, with weights that depend on `seed` only, and try it.

    `trial`: two samples to try it with; zeros if not given. `tokens`: what is known of them, if samples are
    tokens. Raises ConfigError if the model cannot be built
    or does not fit the data.
    """
    inputs = torch.zeros(2, *sample_shape) if trial is None else trial
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the accelerators too, and no fork restores them.
        torch.default_generator.manual_seed(integer(seed, "init"))
        try:
            if tokens and isinstance(spec, TokenModel):
                model = spec.build_on(tokens, num_classes)
            else:
                model = spec.build(sample_shape, num_classes)
            output = _try(model, inputs)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"fails on samples {list(sample_shape)} with "
                f"{num_classes} classes ({reason(error)}); "
                f"{_hint(inputs)}change the model's options, or take another model",
                key="model.name",
                value=name_of(spec),
            ) from error
    expected = (2, *sample_shape, num_classes) if tokens and tokens.each else (2, num_classes)
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if got != expected:
        raise ConfigError(
            f"2 samples {list(sample_shape)} must give outputs of shape {expected}, it gives {got}",
            key="model.name",
            value=name_of(spec),
        )
    return model


def _hint(inputs: torch.Tensor) -> str:
    if inputs.is_floating_point():
        return ""
    first, last = inputs.min(), inputs.max()
    return f"they are integers from {first} to {last}, as tokens are: store features as floats; "


def _try(model: nn.Module, inputs: torch.Tensor) -> Any:
    model.eval()  # so that the trial does not move batch statistics
    before = {name: tensor.detach().clone() for name, tensor in _named(model).items()}
    with torch.no_grad():
        output = model(inputs)
        for name, tensor in _named(model).items():
            # Some models take their first parameters from the first samples they see: from real ones.
            if name in before and not torch.equal(tensor, before[name]):
                tensor.copy_(before[name])
    if lora.has_adapters(model):
        lora.check_called(model, inputs)
    model.train()
    return output


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers that have a shape."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: t for name, t in tensors if not nn.parameter.is_lazy(t)}


def plain_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers under the names of the plain architecture, adapters merged into them."""
    return (lora.merged(model) if lora.has_adapters(model) else model).state_dict()


def name_of(spec: Model) -> str:
    """The name of this model in a config."""
    if isinstance(spec, Factory):
        return spec.path
    registered = (name for name, known in MODELS.items() if known is type(spec))
    return next(registered, type(spec).__name__)
