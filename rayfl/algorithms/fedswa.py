"""FedSWA and FedMoSWA: a learning rate that falls within the round, and a server step beyond the mean.

Liu et al., "FedSWA: Improving Generalization in Federated Learning with Highly Heterogeneous Data via
Momentum-Based Stochastic Controlled Weight Averaging", ICML 2025, arXiv:2507.20016.

Legend:
    f_k    learning rate of local step k over the round's, 1 - (1 - rho) k / K_i: falls from 1 to almost rho
    alpha  server step w <- w + alpha D: `server_lr`
    m      FedMoSWA's momentum, the server's control variate;  c_i = that of client i
FedSWA:    d = f_k g
FedMoSWA:  d = f_k (g + m - c_i);  c_i+ = c_i - m - D_i / (lr sum_k f_k);  m <- m + gamma mean(c_i+ - m)
           over the cohort

The formulas and the defaults follow public descriptions of the method; compare them with the paper's
text before you build on them. Because f_k is a factor of the direction, the clip sees f_k d, and weight
decay keeps the round's lr.
Deviations from the code released with FedNSAM in 2026: alpha and rho hold (there, alpha = 1, and rho = 0 at
twice the learning rate in FedSWA, 1 in FedMoSWA), weight decay keeps the round's lr (there, it falls, too),
and m's steps are gamma (there, 1 in the first round and 0.4 later). The code released with FedSWA itself has
rho = 0, alpha = 1 and the 0.4, too, and never calls its FedMoSWA with a falling learning rate.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext
from rayfl.algorithms.fields import ServerLR


@dataclass(frozen=True, kw_only=True)
class FedSWA(Algorithm):
    paper: ClassVar[str] = "Liu et al., ICML 2025, arXiv:2507.20016"

    rho: Annotated[float, Field(ge=0, le=1, description="last local lr over the first")] = 0.1
    server_lr: ServerLR = 1.5

    def falling(self, ctx: ClientContext) -> Tensor:
        """f_k of the current step, `[..., 1]`."""
        return 1 - (1 - self.rho) * ctx.step / ctx.steps

    def local_step(self, x, memory, grad, ctx):
        return self.falling(ctx) * grad(x), memory


@dataclass(frozen=True, kw_only=True)
class FedMoSWA(FedSWA):
    gamma: Annotated[float, Field(gt=0, le=1, description="step of the momentum")] = 0.2

    def init_server(self, w):
        return {"m": torch.zeros_like(w)}

    def init_client(self, w):
        return {"c_i": torch.zeros_like(w)}

    def broadcast(self, w, server):
        return w, {"m": server["m"]}

    def local_step(self, x, memory, grad, ctx):
        return self.falling(ctx) * (grad(x) + (ctx.shared["m"] - memory["c_i"])), memory

    def upload(self, delta, memory, ctx):
        total = ctx.steps - (1 - self.rho) * (ctx.steps - 1) / 2  # sum of f_k over K_i steps
        c_i = memory["c_i"] - ctx.shared["m"] - delta / (total * ctx.lr)
        return {"delta": delta, "gap": c_i - ctx.shared["m"]}, {"c_i": c_i}

    def server_step(self, w, server, mean, ctx):
        w, _ = super().server_step(w, server, mean, ctx)
        return w, {"m": server["m"] + self.gamma * mean["gap"]}

    def global_momentum(self, server):
        return -server["m"]
