"""FedInit: a client begins beyond the global model, away from where it ended the last time.

Sun, Shen and Tao, "Understanding How Consistency Works in Federated Learning via Stage-wise Relaxed
Initialization", NeurIPS 2023, arXiv:2306.05706, Algorithm 1.

Legend: y_last = last iterate of client i's last cohort; beta = how far beyond w it begins;
seen = 1 for a client that has been in a cohort, else 0.
Client:  y <- w + seen beta (w - y_last), then local SGD
Server:  w <- w + server_lr (mean y - w)

Deviations: a client in its first cohort begins at w (released code takes the first global model for its
y_last). `update_from="client"` averages D_i = y - (its own first iterate) instead, as `--use-RI` of the code
released with FedWMSAM does.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class FedInit(Algorithm):
    paper: ClassVar[str] = "Sun, Shen and Tao, NeurIPS 2023, arXiv:2306.05706"

    beta: Annotated[float, Field(ge=0, description="how far beyond w a client begins")] = 0.1
    update_from: Annotated[
        Literal["server", "client"], Field(description="where an update is measured from")
    ] = "server"

    def init_client(self, w):
        return {"y_last": torch.zeros_like(w), "seen": torch.zeros_like(w[:1])}

    def client_start(self, memory, ctx):
        return ctx.start + self.beta * memory["seen"] * (ctx.start - memory["y_last"])

    def upload(self, delta, memory, ctx):
        y = ctx.start + delta
        if self.update_from == "client":
            delta = y - self.client_start(memory, ctx)
        return {"delta": delta}, {"y_last": y, "seen": torch.ones_like(memory["seen"])}
