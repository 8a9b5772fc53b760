"""The distance of a model's outputs from another's, as a penalty on each sample."""

from torch import Tensor
from torch.nn import functional as F


def divergence(target: Tensor, outputs: Tensor, temperature: float) -> Tensor:
    """KL(softmax(target / T) || softmax(outputs / T)) of each sample, `[..., B, classes] -> [..., B]`."""
    wanted, own = (F.log_softmax(z / temperature, dim=-1) for z in (target, outputs))
    return F.kl_div(own, wanted, reduction="none", log_target=True).sum(-1)
