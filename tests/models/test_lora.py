"""Adapters: where they sit, what they cost, and that they train."""

from dataclasses import replace

import pytest
import torch
from small_swin import SmallSwin
from torch import Tensor, nn
from torch.func import functional_call

from rayfl.errors import ConfigError
from rayfl.models import build, plain_state_dict
from rayfl.models.lora import LoRA, SelfAttention
from rayfl.models.transformer import ViTB16, ViTTiny

TINY = ViTTiny(image_size=8, lora=LoRA(r=2))
IMAGES = (3, 8, 8)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def moved(model: nn.Module) -> nn.Module:
    """With all trainable parameters away from their start, where B is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_counts_are_the_papers():
    """12 blocks of qkv (768 -> 2304) and proj (768 -> 768) at r = 16, and a head for 100 classes."""
    with torch.device("meta"):
        model = ViTB16(lora=LoRA()).build((3, 224, 224), 100)
    sizes = {name: p.numel() for name, p in trainable(model).items()}
    adapters = sum(size for name, size in sizes.items() if "lora_" in name)
    assert adapters == 12 * 16 * ((768 + 2304) + (768 + 768)) == 884_736
    assert sum(sizes.values()) - adapters == 768 * 100 + 100 == 76_900
    assert {name for name in sizes if "lora_" not in name} == {
        "heads.head.weight",
        "heads.head.bias",
    }


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_an_attention_taken_apart_is_torchs(training, biased):
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(12, 3, bias=biased, batch_first=True).train(training)
    if biased:
        nn.init.normal_(packed.in_proj_bias)
        nn.init.normal_(packed.out_proj.bias)
    x = torch.randn(2, 5, 12)
    expected, _ = packed(x, x, x, need_weights=False)
    apart = SelfAttention(packed).train(training)
    torch.testing.assert_close(apart(x, x, x, need_weights=False)[0], expected)
    again, _ = apart.packed()(x, x, x, need_weights=False)
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("spec", [TINY, SmallSwin(lora=LoRA(r=2))], ids=lambda s: s.name)
def test_starts_as_the_plain_model_and_merges_into_it(spec):
    model = build(spec, IMAGES, 5, seed=0).eval()
    plain = build(replace(spec, lora=None), IMAGES, 5, seed=0).eval()
    x = torch.randn(3, *IMAGES)
    torch.testing.assert_close(model(x), plain(x))

    expected = moved(model)(x)
    assert not torch.allclose(expected, plain(x), atol=1e-2)
    plain.load_state_dict(plain_state_dict(model))
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x), expected)  # merging works on a copy


def test_an_adapter_adds_alpha_over_r_times_b_a_of_the_dropped_out_input():
    spec = replace(TINY, lora=LoRA(r=2, alpha=3.0, dropout=0.4, target_modules=("mlp.0",)))
    layer = moved(build(spec, IMAGES, 5, seed=0)).get_submodule(
        "encoder.layers.encoder_layer_3.mlp.0"
    )
    x = torch.randn(4, 192)
    weights = dict(layer.named_parameters())
    A, B = weights["lora_A.default.weight"], weights["lora_B.default.weight"]
    base = x @ weights["base_layer.weight"].T + weights["base_layer.bias"]
    torch.testing.assert_close(layer.eval()(x), base + 1.5 * x @ A.T @ B.T)
    torch.manual_seed(7)
    kept = (nn.functional.dropout(torch.ones_like(x), 0.4) > 0).float()
    torch.manual_seed(7)
    torch.testing.assert_close(layer.train()(x), base + 1.5 * (x * kept / 0.6) @ A.T @ B.T)


@pytest.mark.parametrize("spec", [TINY, SmallSwin(lora=LoRA(r=2))], ids=lambda s: s.name)
def test_every_adapter_learns(spec):
    model = moved(build(spec, IMAGES, 5, seed=0).eval())
    tensors = trainable(model)
    loss = functional_call(model, tensors, (torch.randn(3, *IMAGES),)).square().sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    idle = [n for n, g in zip(tensors, gradients, strict=True) if not g.any()]
    assert idle == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            SmallSwin(lora=LoRA(target_modules=("qkv", "mlp.0"))),
            r"model\.lora\.target_modules: .*features\.1\.0\.attn\.qkv.*8 such layers",
        ),
        (replace(TINY, lora=LoRA(target_modules=("proj", "nothing"))), r"ends in 'nothing'.*\.qkv"),
        (
            replace(TINY, lora=LoRA(target_modules=("heads.head",))),
            r"but the head ends in 'heads\.h",
        ),
        (replace(TINY, lora=LoRA(target_modules=("conv_proj",))), r"ends in 'conv_proj'"),
    ],
)
def test_refuses_targets_that_would_not_train(spec, message):
    with pytest.raises(ConfigError, match=message):
        build(spec, IMAGES, 5, seed=0)


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"model\.lora: .*pip install 'rayfl\[lora\]'"):
        build(TINY, IMAGES, 5, seed=0)
