"""FedPer and FedRep: the body is everybody's, and each client keeps a head of its own.

FedPer: Arivazhagan et al., "Federated Learning with Personalization Layers", 2019, arXiv:1912.00818.
FedRep: Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021,
arXiv:2102.07078, Algorithm 1.

Legend: head = the tensors of the model's last layer, or those whose names begin with `head`; body = all
others. A client begins at the global body and its own head, and uploads the change of its body alone.
    fedper  trains both at once
    fedrep  trains the head in the first `head_share` of its local steps, then the body, in one at least
The global model keeps the head that it began with, and a client without rounds has that one: what counts is
the accuracy of the clients' own models (`evaluation.personalised`). The last layer is that of the last
tensor: where another one gives the outputs (GPT-2's, which is tied to the embedding), name a head.

Deviation: the paper's FedRep takes a number of epochs for each part; here they share the local steps.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext, ExperimentInfo, TensorInfo


@dataclass(frozen=True, kw_only=True)
class FedPer(Algorithm):
    paper: ClassVar[str] = "Arivazhagan et al., 2019, arXiv:1912.00818"
    sends: ClassVar[Literal["all", "part", "nothing"]] = "part"

    head: Annotated[
        str,
        Field(
            description="beginning of the names of the tensors that clients keep; '': last layer"
        ),
    ] = ""

    def init_client(self, w):
        return {"own": torch.zeros_like(w), "seen": torch.zeros_like(w[:1])}

    def personal(self, memory, ctx):
        own = torch.where(self.is_head(ctx), memory["own"], ctx.start)
        return torch.where(memory["seen"] > 0, own, ctx.start)

    def client_start(self, memory, ctx):
        return self.personal(memory, ctx)

    def upload(self, delta, memory, ctx):
        is_head = self.is_head(ctx)
        own = torch.where(is_head, ctx.start + delta, torch.zeros_like(delta))
        body = torch.where(is_head, torch.zeros_like(delta), delta)
        return {"delta": body}, {"own": own, "seen": torch.ones_like(memory["seen"])}

    def upload_bytes(self, uploads, experiment):
        """The body alone."""
        body = uploads["delta"].shape[-1] - sum(t.size for t in self.heads(experiment))
        return torch.full((len(uploads["delta"]),), uploads["delta"].element_size() * body)

    def is_head(self, ctx: ClientContext) -> Tensor:
        """True at the entries of the head, bool `[P]`."""
        mask = torch.zeros(ctx.start.shape[-1], dtype=torch.bool, device=ctx.start.device)
        for t in self.heads(ctx.experiment):
            t.part(mask).fill_(True)
        return mask

    def heads(self, experiment: ExperimentInfo) -> list[TensorInfo]:
        """The tensors of the head. Raises ValueError if there are none, or no others."""
        tensors = experiment.tensors
        layer = tensors[-1].name.rpartition(".")[0]
        head = self.head or (f"{layer}." if layer else tensors[-1].name)
        heads = [t for t in tensors if t.name.startswith(head)]
        if not heads or len(heads) == len(tensors):
            which = "all" if heads else "none"
            raise ValueError(
                f"a head is some of the model's tensors, but {which} of their names begin with {head!r}: "
                f"{', '.join(t.name for t in tensors)}; set algorithm.head"
            )
        return heads


@dataclass(frozen=True, kw_only=True)
class FedRep(FedPer):
    paper: ClassVar[str] = "Collins et al., ICML 2021, arXiv:2102.07078"

    head_share: Annotated[
        float, Field(gt=0, lt=1, description="share of the local steps that train the head")
    ] = 0.5

    def local_step(self, x, memory, grad, ctx):
        # The last step is the body's, even if it is the only one.
        on_head = (ctx.steps * self.head_share > ctx.step) & (ctx.steps - 1 > ctx.step)  # [..., 1]
        return torch.where(self.is_head(ctx) == on_head, grad(x), torch.zeros_like(x)), memory
