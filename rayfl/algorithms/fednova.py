"""FedNova: the server averages the clients' mean steps, so that those who take more do not count more.

Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, arXiv:2007.07481, with SGD clients: a_i is a vector of ones, ||a_i||_1 = K_i.

Legend:
    K    steps of a client with the mean number of samples: a unit, the same for everybody, that cancels
Client:  d = g; uploads D_i K / K_i as `delta`, and tau_i = K_i / K
Server:  w <- w + server_lr mean(tau) mean(delta), which is w + server_lr tau_eff mean(D_i / K_i) with the
         paper's tau_eff = mean(K_i); the means are over the cohort
Where all take the same number of steps this is FedAvg.

The server needs the mean of D_i / K_i, so that is what travels: one vector, and one number. In the unit K it
has the length of an update, and train/drift and update/norm are those of clients with K steps.

Deviations: the momentum and the proximal term of the paper's clients, which have other a_i, and the released
code's server momentum are left out. With `federation.momentum` K_i is not ||a_i||_1: leave it at 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from rayfl.algorithms.base import Algorithm, ExperimentInfo


@dataclass(frozen=True, kw_only=True)
class FedNova(Algorithm):
    paper: ClassVar[str] = "Wang et al., NeurIPS 2020, arXiv:2007.07481"

    def upload(self, delta, memory, ctx):
        tau = ctx.steps / steps_of_the_mean_client(ctx.experiment)
        return {"delta": delta / tau, "tau": tau}, memory

    def server_step(self, w, server, mean, ctx):
        return super().server_step(w, server, {"delta": mean["tau"] * mean["delta"]}, ctx)


def steps_of_the_mean_client(experiment: ExperimentInfo) -> float:
    """E n / B with the mean n of the clients' samples, a fraction perhaps; `local_steps` if that is given."""
    if experiment.local_epochs is None:
        return float(experiment.local_steps or 1)
    return experiment.local_epochs * experiment.mean_samples / experiment.batch_size
