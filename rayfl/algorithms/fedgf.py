"""FedGF: SAM clients whose perturbed point is drawn to the server's where they drift far.

Lee and Yoon, "Rethinking the Flat Minima Searching in Federated Learning", ICML 2024, PMLR 235:27037-27071,
OpenReview 6TM62kpI5c.

Legend (gradient convention):
    G      last update of w, backwards: w_old - w_new; 0 before the first round
    w_p    the server's perturbed point, w + rho_global G / ||G||
    far    1 for a round in which the mean of ||D_i|| over the cohort exceeds `threshold` (the paper's T_D),
           else 0
    c      mean of far over the last `window` rounds (the paper's W), or over all if there are fewer; 0 in
           the first one
Client:  y~ = y + rho g(y) / ||g(y)||;  d = g(c w_p + (1 - c) y~), the step is taken from y
Server:  w <- w + server_lr D
With c = 0 this is FedSAM; with c = 1 all gradients of a round are those at w_p. Down go w, w_p and c, up go
D_i and ||D_i||.

`threshold` is a length in the space of the parameters: choose it anew for each model, learning rate and
number of local steps. The metric train/drift has the mean of ||D_i||, and server/c what came of it. The
defaults are among the values of the released script, which has 0.02, 0.05 and 0.1 for both radii, 0.2 and 0.3
for T_D, and W = 30. In the config quickstart every round exceeds the default, and nothing is learned; with
threshold = 2, above its drift, FedGF is FedSAM there.

The server keeps the last W values of far, the newest first, `[W]`.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.fields import Rho
from rayfl.algorithms.vectors import norm, perturb_, scaled_to


@dataclass(frozen=True, kw_only=True)
class FedGF(Algorithm):
    paper: ClassVar[str] = "Lee and Yoon, ICML 2024, OpenReview 6TM62kpI5c"

    rho: Rho = 0.05
    rho_global: Annotated[float, Field(ge=0, description="radius of the server's point")] = 0.05
    threshold: Annotated[float, Field(ge=0, description="mean norm of updates that is far")] = 0.2
    window: Annotated[int, Field(ge=1, description="rounds over which c is the share of far")] = 30

    def init_server(self, w):
        zeros = torch.zeros_like(w)
        return {"G": zeros, "c": zeros[:1], "far": w.new_zeros(self.window)}

    def broadcast(self, w, server):
        return w, {"w_p": w + scaled_to(server["G"], self.rho_global), "c": server["c"]}

    def local_step(self, x, memory, grad, ctx):
        perturbed = perturb_(grad(x), x, self.rho)
        return grad(perturbed.lerp_(ctx.shared["w_p"], ctx.shared["c"])), memory

    def upload(self, delta, memory, ctx):
        return {"delta": delta, "drift": norm(delta)}, memory

    def server_step(self, w, server, mean, ctx):
        new_w, _ = super().server_step(w, server, mean, ctx)
        is_far = (mean["drift"] > self.threshold).to(w.dtype)
        far = torch.cat([is_far, server["far"]])[: self.window]
        c = far.sum(0, keepdim=True) / min(ctx.round, self.window)
        return new_w, {"G": w - new_w, "c": c, "far": far}
