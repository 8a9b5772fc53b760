"""Taps of convolutions that no output can see: they need no arithmetic, and their gradient is zero.

On a 1x1 map a padded 3x3 convolution sees its centre tap alone, the others lie on the padding. In
ResNet-18 with torchvision's stem on 32x32 images that is so for most of the last stage, and five of its
eleven million parameters never matter. Dead taps stay parameters: weight decay and momentum move them as
always.

Kernels are `[out, in, height, width]`.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Crop(NamedTuple):
    """The live taps of a kernel."""

    rows: slice
    columns: slice
    padding: tuple[int, int]  # padding of the maps for these taps


Crops = Mapping[str, Crop]  # by name of the kernel; kernels that are not here live as a whole


def crop(tensors: dict[str, Tensor], crops: Crops) -> dict[str, Tensor]:
    """The tensors with whole kernels `[..., height, width]` cropped to their live taps, which are views."""
    return tensors | {n: tensors[n][..., c.rows, c.columns] for n, c in crops.items()}


def find_crops(model: nn.Module, inputs: Tensor, trainable: Iterable[str]) -> Crops:
    """The trainable kernels with dead taps, on the maps that these inputs `[B, *sample_shape]` make.

    Whoever uses the kernel by another way than its layer does not show here; see `shortcuts`.
    """
    names = set(trainable)
    used = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    candidates = {
        name: part
        for name, part in model.named_modules()
        if type(part) is nn.Conv2d
        and f"{name}.weight" in names
        and used[id(part.weight)] == 1  # tied kernels may meet maps of different sizes
        and part.padding_mode == "zeros"
        and not isinstance(part.padding, str)
        and any(part.padding)
    }
    crops: dict[str, Crop] = {}
    for name, sizes in _map_sizes(model, candidates, inputs).items():
        conv = candidates[name]
        axes = zip(sizes, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
        (rows, top), (columns, left) = (_live(*map(int, axis)) for axis in axes)
        if (rows.stop - rows.start, columns.stop - columns.start) != conv.kernel_size:
            crops[f"{name}.weight"] = Crop(rows, columns, (top, left))
    return crops


def cropped(model: nn.Module, crops: Crops) -> nn.Module:
    """A model that takes its kernels cropped: `model` itself, or a copy with the same parameters."""
    if not crops:
        return model
    model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for name, of_kernel in crops.items():
        convolution = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(convolution, nn.Conv2d)
        convolution.padding = of_kernel.padding
    return model


def _map_sizes(
    model: nn.Module, convolutions: dict[str, nn.Conv2d], inputs: Tensor
) -> dict[str, tuple[int, int]]:
    """Height and width of the maps that each convolution is given, if they are always the same."""
    if not convolutions:
        return {}
    seen: dict[nn.Module, set[tuple[int, int]]] = {conv: set() for conv in convolutions.values()}

    def look(conv: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        height, width = (inputs or tuple(named.values()))[0].shape[-2:]
        seen[conv].add((height, width))

    hooks = [conv.register_forward_pre_hook(look, with_kwargs=True) for conv in seen]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: min(seen[conv]) for name, conv in convolutions.items() if len(seen[conv]) == 1}


def _live(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[slice, int]:
    """Taps along one axis that meet the map for some output, and the padding that is left for them."""
    whole = slice(0, kernel), padding
    outputs = _outputs(size, kernel, stride, padding, dilation)
    live = [
        tap
        for tap in range(kernel)
        if any(0 <= o * stride - padding + tap * dilation < size for o in range(outputs))
    ]
    if not live:
        return whole
    taps = slice(live[0], live[-1] + 1)
    left = padding - taps.start * dilation
    # The rest needs the same padding on both sides, and as many outputs.
    fits = left >= 0 and _outputs(size, taps.stop - taps.start, stride, left, dilation) == outputs
    return (taps, left) if fits else whole


def _outputs(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
