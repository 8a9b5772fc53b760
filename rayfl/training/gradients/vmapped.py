"""Autograd of modules without buffers for C clients at once.

A GPU idles under one client of a small model: launching its kernels takes longer than running them.

Shapes: C clients, B samples, n rows of W outputs (one a sample, but for tokens), P parameters.
"""

import torch
from torch import Tensor

from rayfl.algorithms.base import Batch, Loss
from rayfl.training.batches import Minibatch
from rayfl.training.gradients.oracle import CROSS_ENTROPY, Autograd, client_mean
from rayfl.training.precision import forward_pass


class VmapGradient(Autograd):
    """Autograd of a module without buffers for C clients at once, by `torch.func.vmap`."""

    stacks = True

    def __call__(
        self, x: Tensor, batch: Minibatch, loss: Loss = CROSS_ENTROPY
    ) -> tuple[Tensor, Tensor]:
        task = self.function.task
        batch = task.batch(batch.first(loss.samples))
        leaves = self.function.leaves(x)
        with torch.enable_grad():
            outputs = self._outputs(leaves, x.dtype, batch)
            of_rows = task.losses(outputs.flatten(0, 1), batch.targets.flatten(0, 1))
            losses = client_mean(of_rows.view(outputs.shape[:2]), batch)
            objective = losses.sum() if loss.cross_entropy else losses.new_zeros(())
            if loss.penalty is not None:
                samples = Batch(batch.targets, lambda y: self._forward(y, batch))
                added = loss.penalty(outputs, samples)
                objective = objective + client_mean(added, batch).sum()
        return self._gradient(objective, leaves, x), losses.detach()

    @torch.no_grad()
    def _forward(self, x: Tensor, batch: Minibatch) -> Tensor:
        """Rows of outputs `[C, n, W]` at `x [C, P]`."""
        return self._outputs(self.function.parameters(x), x.dtype, batch)

    def _outputs(self, tensors: dict[str, Tensor], dtype: torch.dtype, batch: Minibatch) -> Tensor:
        inputs = self.function.inputs(batch.inputs)
        with forward_pass(self.precision, inputs.device):
            # Randomness is an error: what a client draws must not depend on who is beside it.
            stacked = torch.func.vmap(self.function, randomness="error")(tensors, inputs)
        return self.function.task.rows(stacked.to(dtype))
