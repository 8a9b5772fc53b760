"""FedGMT: clients stay near the outputs of the global models' moving average, which stands for flatness.

Li, Liu, Cui, Hu and Li, "One Arrow, Two Hawks: Sharpness-aware Minimization for Federated Learning via Global
Model Trajectory", ICML 2025, OpenReview 80mK2Mqaph.

Legend (lam, h_i and h as in FedDyn; the paper's beta is 1 / lam, its dual variable u_i is -lam h_i):
    e          moving average of w, that of the round included; w itself before the first round
    z_e, z     outputs for one sample of e and of the model in training;  tau = temperature;  gamma = weight
Client:  each sample's loss is cross-entropy + gamma tau^2 KL(softmax(z_e / tau) || softmax(z / tau));
         d = g + lam h_i with its gradient g: FedDyn's without the proximal term;  h_i <- h_i + D_i
Server:  w <- w + server_lr D + c;  e <- alpha e + (1 - alpha) w
    duals = all      c = h <- h + S/N D, their mean over all N clients (the released code, and FedDyn)
    duals = active   c = mean of the new h_i over the cohort (the paper)
One backward pass a step, and one forward pass more. Down go w and e.

The default is all, for partial participation: the mean over the cohort differs from round to round also where
every client is stationary, so w never rests; the mean over all is 0 at a stationary point of the mean loss.
The config quickstart, three seeds, mean of the last ten accuracies: 0.87 to 0.94 with active, 0.98 to 0.99
with all.

Deviations: local momentum, 0.9 in the paper's runs, is `federation.momentum`. With active clients two vectors
go up, D_i and h_i, for the server to average; a server that keeps every h_i, as the released code's, needs
D_i alone.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.divergence import divergence
from rayfl.algorithms.feddyn import FedDyn


@dataclass(frozen=True, kw_only=True)
class FedGMT(FedDyn):
    paper: ClassVar[str] = "Li et al., ICML 2025, OpenReview 80mK2Mqaph"
    compares_outputs: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0, lt=1, description="decay of the average of w")] = 0.95
    gamma: Annotated[float, Field(ge=0, description="weight of the divergence from e")] = 1.0
    tau: Annotated[float, Field(gt=0, description="temperature of the divergence")] = 3.0
    duals: Annotated[
        Literal["active", "all"],
        Field(description="correct w by the dual variables of the cohort, or of all clients"),
    ] = "all"

    def init_server(self, w):
        own = {"e": w.clone()}
        return own if self.duals == "active" else super().init_server(w) | own

    def broadcast(self, w, server):
        return w, {"e": server["e"]}

    def local_step(self, x, memory, grad, ctx):
        def pull(z, batch):
            z_e = batch.forward(ctx.shared["e"].expand_as(x))
            return self.gamma * self.tau**2 * divergence(z_e, z, self.tau)

        return grad(x, pull) + self.lam * memory["h_i"], memory

    def upload(self, delta, memory, ctx):
        uploads, kept = super().upload(delta, memory, ctx)
        return uploads | ({"h": kept["h_i"]} if self.duals == "active" else {}), kept

    def server_step(self, w, server, mean, ctx):
        if self.duals == "active":
            w, new = Algorithm.server_step(self, w, {}, mean, ctx)[0] + mean["h"], {}
        else:
            w, new = super().server_step(w, server, mean, ctx)
        return w, new | {"e": self.alpha * server["e"] + (1 - self.alpha) * w}
