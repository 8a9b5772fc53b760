"""FedAvg whose clients send only the largest entries of their update, and remember the rest.

Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv:1809.07599, Algorithm 1, with a
client's whole round in the place of one gradient step:

    g_i = m_i + (x_i - x),    top_k(g_i) travels,    m_i <- g_i - top_k(g_i)

Legend: x = the round's start point, x_i = the client's last iterate, m_i = its memory, 0 at first. With k = P
it is FedAvg. Run it from the folder of this file:

    rayfl run quickstart algorithm.name=topk:TopK algorithm.share=0.01
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rayfl.algorithms.base import Algorithm, ClientContext, ExperimentInfo, Vectors


@dataclass(frozen=True, kw_only=True)
class TopK(Algorithm):
    """Top-k sparsification with error feedback."""

    paper = "Stich et al., NeurIPS 2018, arXiv:1809.07599"

    share: Annotated[float, Field(gt=0, le=1, description="k / P")] = 0.01

    def init_client(self, w: Tensor) -> Vectors:
        return {"rest": torch.zeros_like(w)}

    def upload(self, delta: Tensor, memory: Vectors, ctx: ClientContext) -> tuple[Vectors, Vectors]:
        whole = memory["rest"] + delta
        largest = whole.abs().topk(self.k(whole), dim=-1).indices
        sent = torch.zeros_like(whole).scatter(-1, largest, whole.gather(-1, largest))
        return {"delta": sent}, {"rest": whole - sent}

    def upload_bytes(self, uploads: Vectors, experiment: ExperimentInfo) -> Tensor:
        """k indices, int32, and k values, float32; or all values, where these are fewer bytes."""
        delta = uploads["delta"]
        return torch.full((len(delta),), min((4 + 4) * self.k(delta), 4 * delta.shape[-1]))

    def k(self, vector: Tensor) -> int:
        """Number of entries that travel, of a vector `[..., P]`."""
        return max(1, round(self.share * vector.shape[-1]))
