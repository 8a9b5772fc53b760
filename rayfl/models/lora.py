"""Low-rank adapters, by the `peft` library: only they and the head are trained, and only they travel.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685: a linear
layer W x becomes W x + (alpha / r) B A x with A `[r, in]` random and B `[out, r]` zero at the start.

torch's and torchvision's attentions read the weights of their projections and never call them, so an
adapter there would do nothing. ViT's attention is therefore taken apart into called layers `qkv` and
`proj` first (the targets of FedNSAM's code), and put together again by `merged`. Adapters that no forward
pass calls are refused.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl.errors import ConfigError, first_line
from rayfl.text import shown


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Settings of the adapters. The defaults are FedNSAM's, but for its dropout of 0.05."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    r: Annotated[int, Field(ge=1, description="rank of the adapters")] = 16
    alpha: Annotated[float, Field(gt=0, description="adapters are scaled by alpha / r")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the adapters' inputs")] = 0.0
    target_modules: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None,
        Field(description="ends of the names of linear layers; null: the model's usual ones"),
    ] = None

    def add(self, model: nn.Module, heads: Sequence[str], usual: Sequence[str]) -> None:
        """Put adapters on the target layers of `model` in place, and freeze all else but `heads`.

        Raises ConfigError if peft is not installed or the targets are no layers that it can adapt.
        """
        peft = _peft()
        targets = list(usual if self.target_modules is None else self.target_modules)
        _take_attentions_apart(model)
        linear = [n for n, part in model.named_modules() if _is_linear(part) and n not in heads]
        if not targets:
            raise ConfigError(
                f"has no usual layers for this model; name ends of {', '.join(linear[:6])}, ...",
                key="model.lora.target_modules",
                value=None,
            )
        for target in targets:
            if not any(f".{name}".endswith(f".{target}") for name in linear):
                raise ConfigError(
                    f"no linear layer but the head ends in {shown(target)}; "
                    f"name ends of {', '.join(linear[:6])}, ...",
                    key="model.lora.target_modules",
                )
        config = peft.LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            exclude_modules=[*heads] or None,  # they are trained as a whole
            bias="none",
            fan_in_fan_out=any(_is_transposed(model.get_submodule(name)) for name in linear),
        )
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            raise ConfigError(
                "peft cannot adapt them "
                f"({first_line(error)}); name ends of {', '.join(linear[:6])}, ...",
                key="model.lora.target_modules",
                value=targets,
            ) from error
        for head in heads:
            model.get_submodule(head).requires_grad_(True)


def check_called(model: nn.Module, inputs: Tensor) -> None:
    """ConfigError if a forward pass does not call every adapter of `model`: it would train nothing."""
    adapted = _adapted(model)
    called: set[str] = set()
    hooks = [
        part.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, part in adapted.items()
    ]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    if idle := [name for name in adapted if name not in called]:
        raise ConfigError(
            f"the model uses the weights of {', '.join(idle[:3])} without "
            f"calling the layer, so an adapter there would do nothing ({len(idle)} such layers); leave "
            "them out",
            key="model.lora.target_modules",
        )


def merged(model: nn.Module) -> nn.Module:
    """A copy of `model` with its adapters added to the weights: the plain architecture again."""
    plain = copy.deepcopy(model)
    for name, part in _adapted(plain).items():
        part.merge()
        plain.set_submodule(name, part.get_base_layer())
    for name, part in list(plain.named_modules()):
        if isinstance(part, SelfAttention):
            plain.set_submodule(name, part.packed())
    return plain.requires_grad_(True)


def has_adapters(model: nn.Module) -> bool:
    """True if `add` was called on the model."""
    return any(isinstance(part, SelfAttention) or _is_adapted(part) for part in model.modules())


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself, whose projections are layers that it calls."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        width = attention.embed_dim
        self.heads, self.dropout = attention.num_heads, attention.dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width), attention.out_proj
        self.qkv.weight, self.qkv.bias = attention.in_proj_weight, attention.in_proj_bias

    def forward(self, x: Tensor, *_: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        """`[n, tokens, width]` to the same, as `nn.MultiheadAttention(x, x, x)` does."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [n, tokens, 3, heads, width / heads]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj(mixed.transpose(1, 2).flatten(2)), None

    def packed(self) -> nn.MultiheadAttention:
        """The attention that it was made from, with today's weights."""
        width, biased = self.qkv.in_features, self.qkv.bias is not None
        attention = nn.MultiheadAttention(
            width, self.heads, self.dropout, bias=biased, batch_first=True
        )
        qkv = {f"in_proj_{name}": value for name, value in self.qkv.state_dict().items()}
        proj = {f"out_proj.{name}": value for name, value in self.proj.state_dict().items()}
        attention.load_state_dict(qkv | proj)
        return attention


def _take_attentions_apart(model: nn.Module) -> None:
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.MultiheadAttention) and part.batch_first:
            model.set_submodule(name, SelfAttention(part))


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in model.named_modules() if _is_adapted(part)}


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or _is_transposed(part)


def _is_transposed(part: nn.Module) -> bool:
    """True for a linear layer as GPT-2 has it, whose weight is `[in, out]`."""
    return type(part).__name__ == "Conv1D" and type(part).__module__.startswith("transformers.")


def _is_adapted(part: nn.Module) -> bool:
    return type(part).__module__.startswith("peft.") and hasattr(part, "get_base_layer")


def _peft() -> Any:
    try:
        import peft  # takes seconds to import
    except ImportError as error:
        raise ConfigError(
            "needs the package peft; install it with `pip install 'rayfl[lora]'`", key="model.lora"
        ) from error
    return peft
