"""Taps of convolutions that no output can see: they need no arithmetic, and their gradient is zero.

On a 1x1 map a padded 3x3 convolution sees its centre tap alone, the others lie on the padding. In
ResNet-18 with torchvision's stem on 32x32 images that is so for most of the last stage, and five of its
eleven million parameters never matter. Dead taps stay parameters: weight decay and momentum move them as
always.

Kernels are `[out, in, height, width]`.
"""

import copy
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

Boxes = dict[str, tuple[slice, slice]]
"""Rows and columns of the live taps, by name of the kernel; kernels that are not here live as a whole."""


def crop(tensors: dict[str, Tensor], boxes: Boxes) -> dict[str, Tensor]:
    """The tensors with whole kernels `[..., height, width]` cropped to their live taps, which are views."""
    cropped = {name: tensors[name][..., rows, columns] for name, (rows, columns) in boxes.items()}
    return tensors | cropped


def trimmed(
    model: nn.Module, sample_shape: tuple[int, ...], trainable: Iterable[str]
) -> tuple[nn.Module, Boxes]:
    """A model that takes cropped kernels for samples of one shape, and how to crop the trainable ones.

    It is `model` itself where no tap is dead, else a copy with the same parameters.
    """
    names, used = set(trainable), Counter(map(id, _all_parameters(model)))
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
    boxes: Boxes = {}
    paddings = {}
    for name, sizes in _map_sizes(model, candidates, sample_shape).items():
        conv = candidates[name]
        axes = zip(sizes, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
        (rows, top), (columns, left) = (_live(*map(int, axis)) for axis in axes)
        if (rows.stop - rows.start, columns.stop - columns.start) != conv.kernel_size:
            boxes[f"{name}.weight"], paddings[name] = (rows, columns), (top, left)
    if not boxes:
        return model, {}
    model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for name, padding in paddings.items():
        model.get_submodule(name).padding = padding
    return model, boxes


def _all_parameters(model: nn.Module) -> Iterable[Tensor]:
    return (p for _, p in model.named_parameters(remove_duplicate=False))


def _map_sizes(
    model: nn.Module, convolutions: dict[str, nn.Conv2d], sample_shape: tuple[int, ...]
) -> dict[str, tuple[int, int]]:
    """Height and width of the maps that each convolution is given, if they are always the same."""
    if not convolutions:
        return {}
    seen: dict[nn.Module, set[tuple[int, int]]] = {conv: set() for conv in convolutions.values()}

    def look(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        seen[conv].add((height, width))

    hooks = [conv.register_forward_pre_hook(look) for conv in seen]
    training = model.training
    kernel = next(iter(seen)).get_parameter("weight")
    try:
        with torch.no_grad():
            model.eval()(kernel.new_zeros(1, *sample_shape))
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
