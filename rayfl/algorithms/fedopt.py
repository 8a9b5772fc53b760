"""FedAdam, FedYogi and FedAdagrad: an adaptive step on the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.

Legend: D = mean update of the cohort, m and v = its first and second moment (m points downhill).
    m <- beta1 m + (1 - beta1) D;  w <- w + server_lr m / (sqrt(v) + tau)
    FedAdagrad  v <- v + D^2
    FedAdam     v <- beta2 v + (1 - beta2) D^2
    FedYogi     v <- v - (1 - beta2) D^2 sign(v - D^2)
v starts at tau^2, and there is no bias correction, as in the paper.

The defaults of server_lr and tau are ours: a coordinate moves by at most about server_lr a round, and
where its D is small, by at most server_lr / tau times a moving average of FedAvg's updates. Tune both
together, with tau near the size of D's coordinates; a server_lr of 1 with a small tau diverges on
networks. FedAdagrad's steps shrink by themselves, so its server_lr is larger, and like Adagrad it has no
momentum by default.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.fields import Decay1, Decay2, ServerLR


@dataclass(frozen=True, kw_only=True)
class FedOpt(Algorithm):
    """Common part of the three: all but the second moment."""

    paper: ClassVar[str] = "Reddi et al., ICLR 2021, arXiv:2003.00295"

    server_lr: ServerLR = 0.03
    beta1: Decay1 = 0.9
    tau: Annotated[float, Field(gt=0, description="degree of adaptivity, beside sqrt(v)")] = 0.01

    def init_server(self, w):
        return {"m": torch.zeros_like(w), "v": torch.full_like(w, self.tau**2)}

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """The new v, given `squared` = D^2."""
        raise NotImplementedError

    def server_step(self, w, server, mean, ctx):
        m = self.beta1 * server["m"] + (1 - self.beta1) * mean["delta"]
        v = self.second_moment(server["v"], mean["delta"].square())
        return w + self.server_lr * m / (v.sqrt() + self.tau), {"m": m, "v": v}

    def global_momentum(self, server):
        return self.beta1 * server["m"]


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(FedOpt):
    server_lr: ServerLR = 0.1
    beta1: Decay1 = 0.0

    def second_moment(self, v, squared):
        return v + squared


@dataclass(frozen=True, kw_only=True)
class FedAdam(FedOpt):
    beta2: Decay2 = 0.99

    def second_moment(self, v, squared):
        return self.beta2 * v + (1 - self.beta2) * squared


@dataclass(frozen=True, kw_only=True)
class FedYogi(FedOpt):
    beta2: Decay2 = 0.99

    def second_moment(self, v, squared):
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)
