"""The two ends between which federated learning lies: all data in one place, and each client alone.

`centralised` is SGD on the data of all clients together: one client has them, and takes in a round as many
local steps as a cohort takes on average. `local` is SGD at each client without any exchange: a client goes on
from its own last iterate whenever a cohort has it. So both have the budget of the federation
(of one without stragglers and lost clients) and send nothing. Of `local`, the
accuracy of the clients' own models counts (`evaluation.personalised`); its global model is never trained.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from rayfl.algorithms.base import Algorithm


@dataclass(frozen=True, kw_only=True)
class Centralised(Algorithm):
    paper: ClassVar[str] = "no federation: SGD on all data in one place"
    pools_data: ClassVar[bool] = True
    sends: ClassVar[Literal["all", "part", "nothing"]] = "nothing"


@dataclass(frozen=True, kw_only=True)
class Local(Algorithm):
    paper: ClassVar[str] = "no federation: SGD at each client alone"
    sends: ClassVar[Literal["all", "part", "nothing"]] = "nothing"

    def init_client(self, w):
        return {"own": w.clone()}

    def personal(self, memory, ctx):
        return memory["own"]

    def client_start(self, memory, ctx):
        return memory["own"]

    def upload(self, delta, memory, ctx):
        return {"delta": torch.zeros_like(delta)}, {"own": ctx.start + delta}
