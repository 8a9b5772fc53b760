"""A problem that needs no data: the gradient oracle of quadratics, by which one's own method is checked.

Shapes: C clients of a stack, P parameters, B samples.
"""

import torch
from torch import Tensor

from rayfl.algorithms.base import Batch, Loss
from rayfl.training.batches import Minibatch
from rayfl.training.gradients.oracle import CROSS_ENTROPY

SAMPLES, CLASSES = 4, 3


class Quadratics:
    """The oracle of `1/2 sum_j a_j (x_j - b_j)^2`, in which every row is computed alike.

    The model's outputs are some of the differences x - b, as a few samples of three classes.
    """

    stacks = True

    def __init__(self, size: int, clients: int, dtype: torch.dtype):
        self._size, self._clients, self._dtype = size, clients, dtype
        self._curvature = torch.linspace(0.3, 1.0, size, dtype=dtype)
        self._shown = torch.arange(SAMPLES * CLASSES) % size
        self._generator = torch.Generator().manual_seed(0)

    def point(self) -> Tensor:
        """Another random vector `[P]` of norm about 1, the same numbers in every dtype."""
        numbers = torch.empty(self._size).normal_(generator=self._generator)
        return numbers.to(self._dtype) / self._size**0.5

    def batch(self) -> Minibatch:
        """Another minima b `[C, P]`, where a minibatch has its samples."""
        minima = torch.stack([self.point() for _ in range(self._clients)])
        return Minibatch(minima, torch.zeros(self._clients, SAMPLES, dtype=torch.int64), None)

    def __call__(
        self, x: Tensor, batch: Minibatch, loss: Loss = CROSS_ENTROPY
    ) -> tuple[Tensor, Tensor]:
        away = self._away(x, batch)
        gradient = away * self._curvature
        losses = (away * gradient).sum(-1) / 2
        if not loss.cross_entropy:
            gradient = torch.zeros_like(away)
        if loss.penalty is not None:
            outputs = self._outputs(x, batch)
            samples = Batch(batch.targets, lambda y: self._outputs(y, batch))
            with torch.enable_grad():
                added = loss.penalty(outputs.requires_grad_(), samples)
                if added.shape != batch.targets.shape:
                    raise ValueError(
                        f"the penalty is {list(added.shape)}, but needs one value for each sample, "
                        f"[..., B]: {list(batch.targets.shape)} here"
                    )
                slopes = torch.autograd.grad(added.mean(-1).sum(), outputs)[0]
            gradient.index_add_(1, self._shown, slopes.flatten(1) * self._size**0.5)
        return gradient, losses

    def _outputs(self, x: Tensor, batch: Minibatch) -> Tensor:
        """Outputs `[C, B, classes]`, of a size of about 1."""
        away = self._away(x, batch)[:, self._shown] * self._size**0.5
        return away.unflatten(1, (SAMPLES, CLASSES))

    @staticmethod
    def _away(x: Tensor, batch: Minibatch) -> Tensor:
        if x.shape != batch.inputs.shape:
            raise ValueError(
                f"the model was asked for at {list(x.shape)}, but x is {list(batch.inputs.shape)}"
            )
        return x - batch.inputs
