"""The partition that the data bring with them: by writer (FEMNIST) or by domain (OfficeHome).

Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, arXiv:1812.01097, for a client per writer.
"""

import heapq
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.random import Generator
from pydantic import Field

from rayfl.data.partition import Groups, Labels, Owners, Scheme
from rayfl.data.schemes.dealing import deal_iid, equal_sizes
from rayfl.data.schemes.dirichlet import Dirichlet
from rayfl.data.schemes.sizes import IID
from rayfl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ByGroup(Scheme):
    """A client is a writer, or one of several clients of a domain: groups that the data know."""

    inner: Annotated[
        Literal["iid", "dirichlet"],
        Field(description="how the samples of a group are spread over its clients"),
    ] = "iid"
    alpha: Annotated[
        float, Field(gt=0, description="Dirichlet concentration, if inner is dirichlet")
    ] = 0.1
    merge: Annotated[
        bool, Field(description="if there are fewer clients than groups: several groups a client")
    ] = False

    @property
    def by_class(self) -> bool:
        return self.inner == "dirichlet"

    def assign(self, labels: Labels, clients: int, rng: Generator, groups: Groups = None) -> Owners:
        """Client ids ascend with the groups; a group has clients in proportion to its samples."""
        if groups is None:
            raise ConfigError(
                "the data have no groups; use data.name=domain_folder, data.name=hf or parquet with "
                "data.group_column, a .npz file with group_train, or another partition",
                key="partition.name",
                value="by_group",
                keys=("data.name", "data.group_column"),
            )
        dense = np.unique(groups, return_inverse=True)[1]
        sizes = np.bincount(dense)
        if clients < len(sizes):
            return deal_iid(self._groups_per_client(len(sizes), clients), rng)[dense]
        if clients == len(sizes):
            return dense
        inner = IID() if self.inner == "iid" else Dirichlet(alpha=self.alpha)
        clients_of = _clients_per_group(sizes, clients)
        members = np.split(np.argsort(dense, kind="stable"), np.cumsum(sizes)[:-1])
        owner, first = np.empty(len(labels), dtype=np.int64), 0
        for samples, count in zip(members, clients_of, strict=True):
            classes = labels[samples]
            if inner.by_class:
                classes = np.unique(classes, return_inverse=True)[1]
            owner[samples] = first + inner.assign(classes, int(count), rng)
            first += count
        return owner

    def _groups_per_client(self, groups: int, clients: int) -> np.ndarray:
        if not self.merge:
            raise ConfigError(
                "partition.name = 'by_group' gives each group a client, "
                f"and the data have {groups} groups (writers or domains); set federation.clients="
                f"{groups} or more, or partition.merge=true: several groups a client",
                key="federation.clients",
                value=clients,
                keys=("partition.name", "partition.merge"),
            )
        return equal_sizes(groups, clients)


def _clients_per_group(sizes: np.ndarray, clients: int) -> np.ndarray:
    """One for each group, the others one by one to the group with the most samples per client (D'Hondt).

    No group gets more clients than it has samples while another has samples to spare.
    """
    count = [1] * len(sizes)
    # The smallest is the largest quotient, of the first group that has it.
    waiting = [(-size / 2, group) for group, size in enumerate(sizes.tolist())]
    heapq.heapify(waiting)
    for _ in range(clients - len(sizes)):
        _, group = waiting[0]
        count[group] += 1
        heapq.heapreplace(waiting, (-float(sizes[group]) / (count[group] + 1), group))
    return np.array(count)
