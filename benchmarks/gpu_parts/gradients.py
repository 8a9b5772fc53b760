"""Gradients of the GPU beside those of the CPU in float64, in each precision.

Rounding may turn the sign in front of a ReLU, or which pixel a pooling takes, and a gradient jumps there.
Models that have no such places ("smooth": SiLU and means instead) show what is left: the rounding itself.
"""

import copy
import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.gpu_parts.log import Log
from benchmarks.gpu_parts.models import SmallViT
from benchmarks.gpu_parts.setup import Setup
from rayfl.models.lenet import LeNet5
from rayfl.models.mlp import MLP
from rayfl.models.resnet import ResNet18
from rayfl.training.batches import Minibatch
from rayfl.training.flat import Layout
from rayfl.training.function import Function
from rayfl.training.gradients import BatchedMLP, PerClientGradient, mlp_layers
from rayfl.training.precision import Precision, local_arithmetic
from rayfl.training.process import configure_process

SAMPLES, SIZE, CLASSES = 16, 16, 10


class Kind(NamedTuple):
    """One way to compute, and how far its gradients may be from the CPU's in float64."""

    dtype: torch.dtype
    precision: Precision
    limit: float  # relative to the gradient's norm
    jumps: float | None = None  # limit where rounding may make gradients jump; None: not compared


KINDS = {
    "float64": Kind(torch.float64, "float32", 1e-9, 1e-9),
    "float32": Kind(torch.float32, "float32", 1e-3, 5e-3),
    "tf32": Kind(torch.float32, "tf32", 5e-3),
    "bfloat16": Kind(torch.float32, "bfloat16", 3e-2),
}
# Statistics over the 16 values of a map of one pixel magnify whatever is rounded.
BATCH_STATISTICS = 4.0


class Model(NamedTuple):
    module: nn.Module
    jumps: bool = False
    factor: float = 1.0  # of the limits


def models() -> dict[str, Model]:
    """Freshly made, each with the same weights every time."""
    torch.manual_seed(0)
    shape = (3, SIZE, SIZE)
    lenet, mlp = (spec.build(shape, CLASSES) for spec in (LeNet5(), MLP()))
    group, batch = (ResNet18(norm=norm).build(shape, CLASSES) for norm in ("group", "batch"))
    return {
        "MLP": Model(mlp),
        "LeNet-5, smooth": Model(smooth(lenet)),
        "ViT": Model(SmallViT(CLASSES)),
        "ResNet-18 GN, smooth": Model(smooth(group)),
        "ResNet-18 BN, smooth": Model(smooth(batch), factor=BATCH_STATISTICS),
        "LeNet-5": Model(lenet, jumps=True),
        "ResNet-18 GN": Model(group, jumps=True),
        "ResNet-18 BN": Model(batch, jumps=True, factor=BATCH_STATISTICS),
    }


def smooth(model: nn.Module) -> nn.Module:
    """A copy with SiLU for ReLU and means for maxima."""
    model = copy.deepcopy(model)
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.ReLU):
            model.set_submodule(name, nn.SiLU())
        elif isinstance(part, nn.MaxPool2d):
            pooling = nn.AvgPool2d(part.kernel_size, part.stride, part.padding)
            model.set_submodule(name, pooling)
    return model


def run(setup: Setup, log: Log) -> None:
    configure_process(threads=min(8, os.cpu_count() or 1))
    generator = torch.Generator().manual_seed(1)
    shape = (1, SAMPLES, 3, SIZE, SIZE)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    # Two classes: with more, the samples' gradients cancel, and what rounding leaves counts for more.
    targets = torch.randint(2, (1, SAMPLES), generator=generator)
    batch = Minibatch(inputs, targets, None)
    for name, model in models().items():
        if setup.small and model.jumps:
            continue
        expected = gradient(model.module, batch, "cpu", torch.float64, "float32")
        for label, kind in KINDS.items():
            limit = kind.jumps if model.jumps else kind.limit
            if limit is None or (setup.small and label in ("float64", "tf32")):
                continue  # on a CPU these are the reference itself, and float32
            if kind.precision == "bfloat16" and mlp_layers(model.module) is not None:
                continue  # autocast has no say over its backward pass: such runs use autograd
            found = gradient(model.module, batch, setup.device, kind.dtype, kind.precision)
            apart = float((found.cpu().double() - expected).norm() / expected.norm())
            limit *= model.factor
            log.check(f"{name}, {label}", apart <= limit, f"{apart:.1e} apart, limit {limit:.0e}")


def gradient(
    model: nn.Module, batch: Minibatch, device: str, dtype: torch.dtype, precision: Precision
) -> Tensor:
    """Gradient `[P]` of the mean loss, as the engine takes it."""
    w, buffers = Layout(model).flatten(model)
    own = copy.deepcopy(model).to(device, dtype).train()
    function = Function(own, Layout(own))
    x = w.to(device, dtype).unsqueeze(0)
    # As the engine has them: images are channels-last in memory.
    images = batch.inputs[0].to(device, dtype).contiguous(memory_format=torch.channels_last)
    inputs = Minibatch(images.unsqueeze(0), batch.targets.to(device), None)
    if mlp_layers(own) is not None:
        oracle = BatchedMLP(function)
    else:
        oracle = PerClientGradient(function, precision)
        oracle.begin_client(buffers.to(device, dtype))
    with local_arithmetic(precision):
        return oracle(x, inputs)[0][0]
