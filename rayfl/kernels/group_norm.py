"""Group normalisation of maps that lie channels last, as convolutions like them.

PyTorch's own kernels want channels first: with them every normalisation between two convolutions copies its
maps four times, and takes a dozen kernels where three do. Without half precision: it computes in float32.

Shapes: N samples, C channels, G groups, H and W of the maps.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rayfl.kernels.switch import on

# torch's type hints do not know it.
_is_wrapped: Any = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`F.group_norm` of `x [N, C, H, W]`; `weight` and `bias` are `[C]` or None.

    By the kernels where they are on and `x` is channels last, as is then the result; it can be
    differentiated once.
    """
    if _takes(x, groups, weight, bias):
        return _GroupNorm.apply(x, groups, weight, bias, eps)
    return F.group_norm(x, groups, weight, bias, eps)


def with_group_norm(model: nn.Module) -> nn.Module:
    """A model that calls `group_norm`: `model` itself, or a copy with the same parameters.

    Subclasses of `nn.GroupNorm`, and layers with hooks, stay as they are.
    """
    if not any(map(_is_plain, model.modules())):
        return model
    model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for part in filter(_is_plain, model.modules()):
        part.__class__ = GroupNorm
    return model


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` by the kernel where that is on."""

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        from rayfl.kernels import triton_group_norm

        y, mean, rstd = triton_group_norm.forward(x, groups, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from rayfl.kernels import triton_group_norm

        x, weight, mean, rstd = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, partial = triton_group_norm.backward(dy, x, ctx.groups, weight, mean, rstd)
        dweight = dbias = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            dweight, dbias = triton_group_norm.summed(partial)
        return (
            dx,
            None,
            dweight if ctx.needs_input_grad[2] else None,
            dbias if ctx.needs_input_grad[3] else None,
            None,
        )


def _takes(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> bool:
    own = [t for t in (weight, bias) if t is not None]
    return (
        on(x, *own)
        and not torch.is_autocast_enabled(x.device.type)
        and not any(map(_is_wrapped, (x, *own)))  # vmap knows no kernels
        and x.dim() == 4
        and x.numel() > 0
        and x.shape[1] % groups == 0
        and x[0].numel() < 1 << 31
        and x.is_contiguous(memory_format=torch.channels_last)
        and all(t.shape == x.shape[1:2] and t.is_contiguous() for t in own)
    )


def _is_plain(part: nn.Module) -> bool:
    hooks = (
        part._forward_pre_hooks,
        part._forward_hooks,
        part._backward_pre_hooks,
        part._backward_hooks,
    )
    return type(part) is nn.GroupNorm and not any(hooks)
