"""Gradient oracles: flat parameters of a stack of clients -> flat gradients on their minibatches.

All of them compute the same thing. `PerClientGradient` takes any module, `VmapGradient` modules without
buffers, and `BatchedMLP` chains of linear layers.
"""

from rayfl.training.gradients.batched_mlp import BatchedMLP, mlp_layers
from rayfl.training.gradients.oracle import Oracle
from rayfl.training.gradients.per_client import PerClientGradient
from rayfl.training.gradients.vmapped import VmapGradient

__all__ = ["BatchedMLP", "Oracle", "PerClientGradient", "VmapGradient", "mlp_layers"]
