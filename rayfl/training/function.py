"""A model as a function of flat vectors: what gradients and evaluation call.

Shapes: P parameters, Q entries of float buffers, B samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rayfl.training.conv_crop import Crops, crop, cropped
from rayfl.training.flat import Layout, views
from rayfl.training.task import CLASSES, Task

T = TypeVar("T")
# Hooks on gradients (`Tensor.register_hook`), by name of the parameter.
GradientHooks = Mapping[str, tuple[Callable[[Tensor], Tensor | None], ...]]


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """Ways in which the engine may compute the steps and evaluations of a model."""

    # Images and kernels may lie channels last in memory, as convolutions like them. A model that views
    # maps as rows (`x.view(len(x), -1)`) needs them channels first, as PyTorch makes them.
    channels_last: bool = True
    crops: Crops = field(default_factory=dict)
    # The model is a chain of linear layers, which has a hand-written backward pass.
    dense: bool = False
    # Several passes may read the same inputs: no pass changes them.
    shares_inputs: bool = True
    hooks: GradientHooks = field(default_factory=dict)
    dropped: tuple[str, ...] = ()  # faster ways that are not taken, and why; for users

    def function(self, model: nn.Module, task: Task = CLASSES) -> "Function":
        """The model as a function of flat vectors."""
        return Function(cropped(model, self.crops), Layout(model), self, task)


@dataclass(eq=False)
class Function:
    """A module that takes its parameters from a flat vector; `cropped` made it if `ways` has crops."""

    model: nn.Module
    layout: Layout
    ways: Shortcuts = field(default_factory=Shortcuts)
    task: Task = CLASSES

    def __post_init__(self):
        self._frame = _Frame(self.model)

    def places(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of the model's parameters in `[..., P]`."""
        return crop(views(self.layout.parameters, flat), self.ways.crops)

    def parameters(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters in `[..., P]` as the model takes them: views where that can be."""
        places = self.places(flat)
        if not self.ways.channels_last:
            kernels = (slot.name for slot in self.layout.parameters if len(slot.shape) == 4)
            places |= {name: channels_first(places[name]) for name in kernels}
        return places

    def leaves(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters as the model takes them, to be differentiated by."""
        leaves = {n: p.requires_grad_() for n, p in self.parameters(flat.detach()).items()}
        for name, hooks in self.ways.hooks.items():
            for hook in hooks:
                leaves[name].register_hook(hook)
        return leaves

    def buffers(self, flat: Tensor) -> dict[str, Tensor]:
        """The float buffers in `[Q]`: views, which passes in training mode change."""
        return views(self.layout.buffers, flat)

    def inputs(self, samples: Tensor) -> Tensor:
        """`[..., B, *sample_shape]` as the model takes them, and may change them."""
        if not self.ways.channels_last:
            return channels_first(samples)
        return samples if self.ways.shares_inputs else samples.clone()

    def within(self, tensors: dict[str, Tensor], work: Callable[[nn.Module], T]) -> T:
        """Return `work(model)` while these, by name, are its parameters and buffers.

        A backward pass belongs in there too: layers that keep no results compute them again.
        """
        named = {f"model.{name}": tensor for name, tensor in tensors.items()}
        return functional_call(self._frame, named, (work,))

    def __call__(self, tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs `[B, *task.shape]` with these parameters and buffers, by name."""
        return self.within(tensors, lambda model: model(inputs))


class _Frame(nn.Module):
    """A module whose forward pass is whatever is to be done with a model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[nn.Module], Any]) -> Any:
        return work(self.model)


def channels_first(samples: Tensor) -> Tensor:
    """A copy that lies in memory as PyTorch makes it; `contiguous()` takes grey images for such a one."""
    return samples.clone(memory_format=torch.contiguous_format)


def gradient_hooks(model: nn.Module) -> GradientHooks:
    """The hooks of the trainable parameters. They are lost when a parameter is pickled or copied."""
    trainable = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return {name: tuple(p._backward_hooks.values()) for name, p in trainable if p._backward_hooks}
