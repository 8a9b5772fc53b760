"""Autograd of any module, one client at a time: on CPUs the fastest way for convolutions.

Shapes: C clients, B samples, n rows of W outputs (one a sample, but for tokens), P parameters.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rayfl.algorithms.base import Batch, Loss
from rayfl.training.batches import Minibatch
from rayfl.training.gradients.oracle import CROSS_ENTROPY, Autograd
from rayfl.training.precision import forward_pass


@dataclass(eq=False)
class PerClientGradient(Autograd):
    """Autograd of any module, one client a call (C = 1).

    Of the passes on one minibatch the first alone updates buffers: SAM's second must not.
    """

    stacks = False
    # Buffers of the client that is being trained.
    buffers: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self):
        self._seen: Minibatch | None = None
        # BatchNorm's count of batches: with momentum=None it decides how much a batch weighs.
        self._first = {
            name: buffer.clone()
            for name, buffer in self.function.model.named_buffers()
            if not buffer.is_floating_point()
        }
        self._counters = {name: counter.clone() for name, counter in self._first.items()}

    def begin_client(self, buffers: Tensor) -> None:
        """Start a client with these float buffers `[Q]`; forward passes update them in place.

        Recordings of its passes serve another client that has its buffers in the same memory.
        """
        for name, counter in self._counters.items():
            counter.copy_(self._first[name])
        self.buffers, self._seen = self.function.buffers(buffers) | self._counters, None

    def __call__(
        self, x: Tensor, batch: Minibatch, loss: Loss = CROSS_ENTROPY
    ) -> tuple[Tensor, Tensor]:
        buffers = self._spare_buffers() if batch is self._seen else self.buffers
        self._seen = batch
        task = self.function.task
        batch = task.batch(batch.first(loss.samples))
        leaves = self.function.leaves(x[0])

        def passes(model: nn.Module) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                outputs = self._outputs(model, x.dtype, batch)
                mean = objective = task.mean(outputs, batch.targets[0])
                if not loss.cross_entropy:
                    objective = outputs.new_zeros(())
                if loss.penalty is not None:
                    samples = Batch(batch.targets, lambda y: self._forward(y, batch))
                    objective = objective + loss.penalty(outputs.unsqueeze(0), samples).mean()
            return self._gradient(objective, leaves, x[0]).unsqueeze(0), mean.detach().view(1)

        return self.function.within(leaves | buffers, passes)

    @torch.no_grad()
    def _forward(self, x: Tensor, batch: Minibatch) -> Tensor:
        """Rows of outputs `[1, n, W]` at `x [1, P]`; buffers stay as they are."""
        tensors = self.function.parameters(x[0]) | self._spare_buffers()
        return self.function.within(
            tensors, lambda model: self._outputs(model, x.dtype, batch).unsqueeze(0)
        )

    def _outputs(self, model: nn.Module, dtype: torch.dtype, batch: Minibatch) -> Tensor:
        """Rows of outputs `[n, W]` in the dtype of the parameters, whatever the precision of the pass."""
        with forward_pass(self.precision, batch.inputs.device):
            outputs = model(self.function.inputs(batch.inputs[0]))
        return self.function.task.rows(outputs.to(dtype))

    def _spare_buffers(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.buffers.items()}
