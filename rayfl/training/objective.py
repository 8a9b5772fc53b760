"""The loss on fixed samples on one device: values, gradients and Hessian-vector products.

The model is in evaluation mode, samples are not augmented, and the loss is the task's mean (cross-entropy):
weight decay and the terms that a method adds are no part of it.

Shapes: P parameters, Q entries of float buffers, n samples, k points or vectors, j directions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rayfl import seeds
from rayfl.training.batches import DeviceData
from rayfl.training.flat import as_part
from rayfl.training.function import Function
from rayfl.training.process import seed_layers
from rayfl.training.units import Probe, ProbeResult

# Samples of a pass. A second derivative keeps several times the maps of a gradient.
PASS = {"cpu": 128, "cuda": 512}


@dataclass(frozen=True, eq=False)
class SampleObjective:
    """An `Objective`: the mean loss of a model on samples of a data set."""

    function: Function
    data: DeviceData
    samples: Tensor  # indices into the data, int64 `[n]`
    w: Tensor  # `[P]`
    buffers: Tensor  # `[Q]`

    @torch.no_grad()
    def losses(self, coefficients: Tensor, directions: Tensor) -> Tensor:
        """F(w + coefficients @ directions), float64 `[k]`."""
        # Each point's own sum: one product for all of them would round as their number has it.
        points = (self.w + (c[:, None] * directions).sum(0) for c in coefficients.to(self.w))
        return torch.stack([self._loss(point) for point in points]).cpu()

    def gradient(self, offset: Tensor | None = None) -> tuple[float, Tensor]:
        """F and its gradient `[P]` at w + offset, or at w."""
        point = self.w if offset is None else self.w + offset
        loss, gradient = 0.0, torch.zeros_like(self.w)

        def add(objective: Tensor, leaves: list[Tensor]) -> None:
            nonlocal loss
            loss += objective.item()
            gradient.add_(self._flat(_derivative(objective, leaves)))

        self._passes(point, add)
        return loss / len(self.samples), gradient / len(self.samples)

    def gradients(self, offsets: Tensor) -> list[tuple[float, Tensor]]:
        """The result of `gradient` at each of the offsets `[k, P]`."""
        return [self.gradient(offset) for offset in offsets]

    def products(self, vectors: Tensor) -> Tensor:
        """The Hessian of F at w times each vector, `[k, P]`: the gradient of g(w) . v."""
        products = torch.zeros_like(vectors)
        parts = [self._parts(v) for v in vectors]

        def add(objective: Tensor, leaves: list[Tensor]) -> None:
            first = _derivative(objective, leaves, create_graph=True)
            # A gradient without a graph does not depend on w: its second derivative is 0.
            curved = [i for i, g in enumerate(first) if g.requires_grad]
            for product, v in zip(products, parts, strict=True):
                if curved:
                    second = torch.autograd.grad(
                        *([first[i] for i in curved], leaves, [v[i] for i in curved]),
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                    product.add_(self._flat(second))

        self._passes(self.w, add)
        return products / len(self.samples)

    def _loss(self, point: Tensor) -> Tensor:
        tensors = self.function.parameters(point) | self.function.buffers(self.buffers)
        losses = [self._summed(self.function.model, tensors, batch) for batch in self._batches()]
        return torch.stack(losses).double().sum() / len(self.samples)

    def _passes(self, point: Tensor, add: Callable[[Tensor, list[Tensor]], None]) -> None:
        """Call `add` with the summed loss of each batch and the leaves that it depends on."""
        leaves = self.function.leaves(point)
        tensors = leaves | self.function.buffers(self.buffers)
        # Attention's other kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for batch in self._batches():

                def work(model: nn.Module, batch: Tensor = batch) -> None:
                    add(self._summed(model, {}, batch), list(leaves.values()))

                self.function.within(tensors, work)

    def _summed(self, model: nn.Module, tensors: dict[str, Tensor], batch: Tensor) -> Tensor:
        inputs = self.function.inputs(self.data.preprocess(batch, None, None))
        if inputs.is_floating_point():
            inputs = inputs.to(self.w.dtype)
        outputs = self.function(tensors, inputs) if tensors else model(inputs)
        return self.function.task.summed(outputs.to(self.w.dtype), self.data.y[batch])

    def _batches(self) -> Iterator[Tensor]:
        self.function.model.eval()
        # Some models draw random numbers here too: the same ones in each pass over the samples.
        seed_layers(seeds.integer(0, "flatness"), self.w.device)
        yield from self.samples.split(PASS[self.w.device.type])

    def _parts(self, flat: Tensor) -> list[Tensor]:
        return [slot.view(flat) for slot in self.function.layout.parameters]

    def _flat(self, tensors: tuple[Tensor, ...]) -> Tensor:
        slots = self.function.layout.parameters
        return torch.cat([as_part(s, t.detach()) for s, t in zip(slots, tensors, strict=True)])


def _derivative(
    objective: Tensor, leaves: list[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    tensors = torch.autograd.grad(
        objective, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return tuple(t.to_dense() if t.is_sparse else t for t in tensors)


def answer(objective: SampleObjective, probe: Probe, vectors: Tensor) -> ProbeResult:
    """The quantity that the probe asks for, given its vectors `[j, P]`."""
    vectors = vectors.to(objective.w.device)
    if probe.quantity == "products":
        return ProbeResult(np.empty(0), objective.products(vectors).cpu().numpy())
    coefficients = torch.from_numpy(probe.coefficients)
    if probe.quantity == "losses":
        return ProbeResult(objective.losses(coefficients, vectors).numpy(), np.empty((0, 0)))
    (offset,) = coefficients.to(vectors) @ vectors
    loss, gradient = objective.gradient(offset)
    return ProbeResult(np.array([loss]), gradient[None].cpu().numpy())


def probe_samples(indices: np.ndarray, most: int, client: int = 0) -> np.ndarray:
    """At most so many of the indices, ascending: the same for every experiment with these.

    `client`: whose they are, if they are one client's.
    """
    indices = np.sort(indices)
    if len(indices) <= most:
        return indices
    rng = seeds.generator(0, "flatness", client=client)
    return np.sort(rng.choice(indices, most, replace=False))
