"""AsyncSAM: sharpness-aware clients whose perturbation comes from a gradient of some steps before.

Jo, Lim and Lee, "Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep Learning", 2025,
arXiv:2503.11147. The paper has one machine and no federated learning: here, its step is that of the clients,
and the server is FedAvg's.

Legend: g_k = the plain gradient at the iterate of local step k, on b' samples; tau = how many steps old the
gradient is that perturbs; b' = `ascent_samples`.
Client:  e = rho g_j / ||g_j|| with j = max(k - tau, 0);  d = gradient at x + e, on the whole minibatch

The first tau steps of a round have no gradient that is old enough: they take the round's first one, and the
first step is one of SAM. With tau = 0 all are, and this is FedSAM.
Two backward passes a step. The method's gain is time: a second, slower unit computes g_k on fewer samples
beside the step itself, as on a phone with a CPU and an accelerator. Where one device does both, as here, it
saves no more than the samples that b' leaves out. Backward passes are counted as whole ones.

Deviations: the b' samples are the first ones of the step's own minibatch (the paper has a minibatch of their
own). No code of its authors is known, and the default of rho is SAM's.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.fields import Rho
from rayfl.algorithms.vectors import perturbed


@dataclass(frozen=True, kw_only=True)
class AsyncSAM(Algorithm):
    paper: ClassVar[str] = "Jo, Lim and Lee, 2025, arXiv:2503.11147 (no federated method itself)"

    rho: Rho = 0.05
    tau: Annotated[int, Field(ge=0, description="age in steps of the gradient that perturbs")] = 1
    ascent_samples: Annotated[
        Annotated[int, Field(ge=1)] | Literal["all"],
        Field(description="samples of a minibatch whose gradient perturbs later steps"),
    ] = "all"

    def local_step(self, x, memory, grad, ctx):
        g = grad(x, samples=None if self.ascent_samples == "all" else self.ascent_samples)
        names = [f"g_{age}" for age in range(1, self.tau + 1)]
        if ctx.step == 0:
            memory = dict.fromkeys(names, g)
        gradients = [g, *(memory[name] for name in names)]  # from the newest to the oldest
        direction = grad(perturbed(gradients[-1], x, self.rho))
        return direction, dict(zip(names, gradients, strict=False))

    def upload(self, delta, memory, ctx):
        return {"delta": delta}, {}
