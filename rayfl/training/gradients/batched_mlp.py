"""Chains of linear layers for C clients at once, by batched matrix products.

Small layers leave a CPU idle when they come one at a time.

Shapes: C clients, B samples, P parameters.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl.algorithms.base import Batch, Loss
from rayfl.training.batches import Minibatch
from rayfl.training.function import Function
from rayfl.training.gradients.oracle import CROSS_ENTROPY, client_mean


class Dense(NamedTuple):
    """One linear layer inside the flat vector."""

    weight: int
    bias: int | None
    inputs: int
    outputs: int


class BatchedMLP:
    """Hand-written backward pass of Flatten, Linear, ReLU, ..., Linear for C clients at once."""

    stacks = True

    def __init__(self, function: Function):
        layers = mlp_layers(function.model)
        assert layers is not None, "the model is no chain of linear layers"
        offsets = {slot.name: slot.offset for slot in function.layout.parameters}
        self.layers = [
            Dense(
                offsets[f"{name}.weight"],
                offsets[f"{name}.bias"] if layer.bias is not None else None,
                layer.in_features,
                layer.out_features,
            )
            for name, layer in layers
        ]

    def __call__(
        self, x: Tensor, batch: Minibatch, loss: Loss = CROSS_ENTROPY
    ) -> tuple[Tensor, Tensor]:
        batch = batch.first(loss.samples)
        logits, seen = self._forward(x, batch)
        log_p = F.log_softmax(logits, dim=-1)  # [C, B, classes]
        targets = batch.targets.unsqueeze(-1)
        picked = -log_p.gather(-1, targets).squeeze(-1)
        error = log_p.exp_().scatter_add_(-1, targets, torch.full_like(picked, -1.0).unsqueeze(-1))
        if not loss.cross_entropy:
            error.zero_()
        if loss.penalty is not None:
            with torch.enable_grad():
                outputs = logits.requires_grad_()
                samples = Batch(batch.targets, lambda y: self._forward(y, batch)[0])
                added = loss.penalty(outputs, samples)
                error += torch.autograd.grad(added.sum(), outputs)[0]
        if batch.weights is None:
            error /= picked.shape[-1]
        else:
            error *= batch.weights.unsqueeze(-1)
        return self._backward(x, seen, error), client_mean(picked, batch)

    @torch.no_grad()
    def _forward(self, x: Tensor, batch: Minibatch) -> tuple[Tensor, list[Tensor]]:
        """The logits `[C, B, classes]`, and each layer's inputs."""
        hidden = batch.inputs.flatten(2)  # [C, B, features]
        seen = []
        for layer in self.layers:
            seen.append(hidden)
            hidden = torch.bmm(hidden, self._weight(x, layer).transpose(1, 2))
            if layer.bias is not None:
                hidden += x[:, layer.bias : layer.bias + layer.outputs].unsqueeze(1)
            if layer is not self.layers[-1]:
                hidden.relu_()
        return hidden, seen

    def _backward(self, x: Tensor, seen: list[Tensor], error: Tensor) -> Tensor:
        """`[C, P]` from each layer's inputs and the error `[C, B, classes]` at the logits."""
        gradient = torch.empty_like(x)
        for layer, inputs in zip(reversed(self.layers), reversed(seen), strict=True):
            torch.bmm(error.transpose(1, 2), inputs, out=self._weight(gradient, layer))
            if layer.bias is not None:
                gradient[:, layer.bias : layer.bias + layer.outputs] = error.sum(1)
            if layer is not self.layers[0]:
                error = torch.bmm(error, self._weight(x, layer))
                error *= inputs > 0
        return gradient

    @staticmethod
    def _weight(flat: Tensor, layer: Dense) -> Tensor:
        size = layer.inputs * layer.outputs
        part = flat[:, layer.weight : layer.weight + size]
        return part.unflatten(1, (layer.outputs, layer.inputs))


def mlp_layers(model: nn.Module) -> list[tuple[str, nn.Linear]] | None:
    """The linear layers of a Sequential of Flatten, Linear, ReLU, ..., Linear; None for anything else."""
    if type(model) is not nn.Sequential or _is_hooked(model):
        return None
    # A Flatten further down would join what the layers above it have kept apart.
    parts = list(itertools.dropwhile(lambda named: _is_flatten(named[1]), model.named_children()))
    linear = [(name, part) for name, part in parts[::2] if type(part) is nn.Linear]
    between = [part for _, part in parts[1::2]]
    alternates = len(linear) == len(between) + 1 == len(parts[::2])
    if not alternates or not all(type(part) is nn.ReLU for part in between):
        return None
    # A weight that two layers share, or that is computed from others, has no place of its own.
    own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    used = {f"{name}.{p}" for name, _ in linear for p in ("weight", "bias")}
    unbiased = {f"{name}.bias" for name, layer in linear if layer.bias is None}
    return linear if own == used - unbiased else None


def _is_hooked(model: nn.Module) -> bool:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    of_modules = (getattr(part, kind) for part in model.modules() for kind in kinds)
    return any(of_modules) or any(p._backward_hooks for p in model.parameters())


def _is_flatten(part: nn.Module) -> bool:
    return type(part) is nn.Flatten and part.start_dim == 1 and part.end_dim == -1
