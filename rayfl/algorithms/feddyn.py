"""FedDyn: a dynamic regulariser that makes the clients' stationary points the server's.

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv:2111.04263,
Algorithm 1.

Legend (displacement convention: these point downhill):
    lam    weight of the regulariser, the paper's alpha
    h_i    sum of client i's updates D_i so far; the paper's gradient of client i is -lam h_i
    h      mean of h_i over all N clients, seen or not; the paper's h is -lam h
Client:  d = g + lam (y - start) + lam h_i;  h_i <- h_i + D_i
Server:  h <- h + S/N D;  w <- w + server_lr D + h

Deviations: a client takes steps on its objective instead of minimising it exactly. The linear and the
quadratic half of the regulariser are both in the direction (released code has the quadratic half as
weight decay, behind the clip).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class FedDyn(Algorithm):
    paper: ClassVar[str] = "Acar et al., ICLR 2021, arXiv:2111.04263"

    lam: Annotated[float, Field(gt=0, description="weight of the dynamic regulariser")] = 0.1

    def init_server(self, w):
        return {"h": torch.zeros_like(w)}

    def init_client(self, w):
        return {"h_i": torch.zeros_like(w)}

    def local_step(self, x, memory, grad, ctx):
        return grad(x) + self.lam * (x - ctx.start + memory["h_i"]), memory

    def upload(self, delta, memory, ctx):
        return {"delta": delta}, {"h_i": memory["h_i"] + delta}

    def server_step(self, w, server, mean, ctx):
        h = server["h"] + ctx.participation * mean["delta"]
        return super().server_step(w, server, mean, ctx)[0] + h, {"h": h}
