"""Gradient oracles: flat parameters of a stack of clients -> flat gradients on their minibatches.

Three oracles compute the same thing. `PerClient` takes any `nn.Module`, one client at a time: on CPUs
that is the fastest way for convolutions. `DenseStack` takes chains of linear layers and trains C clients
at once by batched matrix products: small layers leave a CPU idle when they come one at a time.
`ModuleStack` takes modules without buffers and trains C clients at once: GPUs are idle under one client
of a small model, for it takes longer to launch its kernels than to run them.

Shapes: C clients, B samples, P parameters.
"""

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl.algorithms.base import Penalty
from rayfl.training.batches import Minibatch
from rayfl.training.function import Function
from rayfl.training.precision import Precision, forward_pass


class Oracle(Protocol):
    """Gradients of the mean cross-entropy at `x [C, P]` on `batch`: `([C, P], losses [C])`.

    A penalty is added to each sample's loss before the gradient is taken; the losses are without it.
    """

    @property
    def stacks(self) -> bool:
        """Whether several clients go into one call."""
        ...

    def __call__(
        self, x: Tensor, batch: Minibatch, penalty: Penalty | None = None
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(eq=False)
class Autograd:
    """What oracles by autograd share: leaves that are views of the flat vector, and the way back."""

    function: Function
    precision: Precision = "float32"

    def _gradient(self, objective: Tensor, leaves: dict[str, Tensor], flat: Tensor) -> Tensor:
        """The objective's derivative by the leaves, `[..., P]` as `flat`."""
        tensors = torch.autograd.grad(
            objective, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        # Dead taps have no gradient.
        gradient = torch.zeros_like(flat) if self.function.crops else torch.empty_like(flat)
        for place, tensor in zip(self.function.places(gradient).values(), tensors, strict=True):
            place.copy_(tensor.to_dense() if tensor.is_sparse else tensor)
        return gradient


@dataclass(eq=False)
class PerClient(Autograd):
    """Autograd of any module, one client a call (C = 1)."""

    stacks = False
    buffers: dict[str, Tensor] = field(default_factory=dict, init=False)
    """Of the client that is being trained."""

    def __post_init__(self):
        self._fresh_step = True
        # BatchNorm's count of batches: with momentum=None it decides how much a batch weighs.
        self._counters = {
            name: buffer.clone()
            for name, buffer in self.function.model.named_buffers()
            if not buffer.is_floating_point()
        }

    @property
    def recordable(self) -> bool:
        """Whether a recording of its passes can serve other clients: each client has buffers of its own."""
        return not self.function.layout.buffers and not self._counters

    def begin_client(self, buffers: Tensor) -> None:
        """Start a client with these float buffers `[Q]`; forward passes update them in place."""
        counters = {name: counter.clone() for name, counter in self._counters.items()}
        self.buffers = self.function.buffers(buffers) | counters

    def begin_step(self) -> None:
        """The next call is the step's first pass: it alone updates buffers (SAM's second must not)."""
        self._fresh_step = True

    def __call__(
        self, x: Tensor, batch: Minibatch, penalty: Penalty | None = None
    ) -> tuple[Tensor, Tensor]:
        buffers = self.buffers if self._fresh_step else self._spare_buffers()
        self._fresh_step = False
        leaves = self.function.leaves(x[0])

        def passes(model: nn.Module) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                outputs = self._outputs(model, x.dtype, batch)
                loss = objective = F.cross_entropy(outputs, batch.targets[0])
                if penalty is not None:
                    added = penalty(outputs.unsqueeze(0), lambda y: self._forward(y, batch))
                    objective = loss + added.mean()
            return self._gradient(objective, leaves, x[0]).unsqueeze(0), loss.detach().view(1)

        return self.function.within(leaves | buffers, passes)

    @torch.no_grad()
    def _forward(self, x: Tensor, batch: Minibatch) -> Tensor:
        """Outputs `[1, B, classes]` at `x [1, P]`; buffers stay as they are."""
        tensors = self.function.parameters(x[0]) | self._spare_buffers()
        return self.function.within(
            tensors, lambda model: self._outputs(model, x.dtype, batch).unsqueeze(0)
        )

    def _outputs(self, model: nn.Module, dtype: torch.dtype, batch: Minibatch) -> Tensor:
        """Outputs `[B, classes]` in the dtype of the parameters, whatever the precision of the pass."""
        with forward_pass(self.precision, batch.inputs.device):
            return model(self.function.inputs(batch.inputs[0])).to(dtype)

    def _spare_buffers(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.buffers.items()}


class ModuleStack(Autograd):
    """Autograd of a module without buffers for C clients at once, by `torch.func.vmap`."""

    stacks = recordable = True

    def __call__(
        self, x: Tensor, batch: Minibatch, penalty: Penalty | None = None
    ) -> tuple[Tensor, Tensor]:
        leaves = self.function.leaves(x)
        with torch.enable_grad():
            outputs = self._outputs(leaves, x.dtype, batch)
            picked = F.cross_entropy(
                outputs.flatten(0, 1), batch.targets.flatten(), reduction="none"
            )
            losses = _mean(picked.view_as(batch.targets), batch)
            objective = losses.sum()
            if penalty is not None:
                added = penalty(outputs, lambda y: self._forward(y, batch))
                objective = objective + _mean(added, batch).sum()
        return self._gradient(objective, leaves, x), losses.detach()

    @torch.no_grad()
    def _forward(self, x: Tensor, batch: Minibatch) -> Tensor:
        """Outputs `[C, B, classes]` at `x [C, P]`."""
        return self._outputs(self.function.parameters(x), x.dtype, batch)

    def _outputs(self, tensors: dict[str, Tensor], dtype: torch.dtype, batch: Minibatch) -> Tensor:
        inputs = self.function.inputs(batch.inputs)
        with forward_pass(self.precision, inputs.device):
            # Randomness is an error: what a client draws must not depend on who is beside it.
            stacked = torch.func.vmap(self.function, randomness="error")(tensors, inputs)
        return stacked.to(dtype)


def _mean(values: Tensor, batch: Minibatch) -> Tensor:
    """Mean over each client's samples, `[C, B] -> [C]`."""
    return values.mean(-1) if batch.weights is None else (values * batch.weights).sum(-1)


class Dense(NamedTuple):
    """One linear layer inside the flat vector."""

    weight: int
    bias: int | None
    inputs: int
    outputs: int


class DenseStack:
    """Hand-written backward pass of Flatten, Linear, ReLU, ..., Linear for C clients at once."""

    stacks = recordable = True

    def __init__(self, function: Function):
        layers = dense_chain(function.model)
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
        self, x: Tensor, batch: Minibatch, penalty: Penalty | None = None
    ) -> tuple[Tensor, Tensor]:
        logits, seen = self._forward(x, batch)
        log_p = F.log_softmax(logits, dim=-1)  # [C, B, classes]
        targets = batch.targets.unsqueeze(-1)
        picked = -log_p.gather(-1, targets).squeeze(-1)
        error = log_p.exp_().scatter_add_(-1, targets, torch.full_like(picked, -1.0).unsqueeze(-1))
        if penalty is not None:
            with torch.enable_grad():
                outputs = logits.requires_grad_()
                added = penalty(outputs, lambda y: self._forward(y, batch)[0])
                error += torch.autograd.grad(added.sum(), outputs)[0]
        if batch.weights is None:
            error /= picked.shape[-1]
        else:
            error *= batch.weights.unsqueeze(-1)
        return self._backward(x, seen, error), _mean(picked, batch)

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


def dense_chain(model: nn.Module) -> list[tuple[str, nn.Linear]] | None:
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
