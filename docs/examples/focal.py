"""The focal loss, which cares less for samples that are right already.

Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002, equation 4:

    FL(p_t) = -(1 - p_t)^gamma log(p_t),  p_t = the probability of the target

Run it from the folder of this file:

    rayfl run quickstart federation.loss=focal:focal
"""

from torch import Tensor
from torch.nn import functional as F

GAMMA = 2.0


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each row, `[n]`, of logits `[n, classes]` and targets `[n]`."""
    loss = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - (-loss).exp()) ** GAMMA * loss
