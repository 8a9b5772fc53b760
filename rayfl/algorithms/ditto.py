"""Ditto: each client trains a model of its own beside the global one, and is drawn to it.

Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv:2012.04221, Algorithm 1.

Legend: v = the client's own model; lam = strength of the pull to the global model w.
Global:  FedAvg
Own:     v <- v - lr (grad(v) + lam (v - w)), one step beside each local step, on the same minibatch

A client's first v is the global model of its first round. Two backward passes a step. Deviations: v takes as
many steps as the global model (the paper leaves that open), without weight decay, clipping or momentum.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class Ditto(Algorithm):
    paper: ClassVar[str] = "Li et al., ICML 2021, arXiv:2012.04221"

    lam: Annotated[float, Field(ge=0, description="pull of a client's model to the global one")] = (
        0.1
    )

    def init_client(self, w):
        return {"v": w.clone()}

    def local_step(self, x, memory, grad, ctx):
        direction, v = grad(x), memory["v"]
        return direction, {"v": v - ctx.lr * (grad(v) + self.lam * (v - ctx.start))}

    def personal(self, memory, ctx):
        return memory["v"]
