"""Clients of which a share of the data is alike, and the rest sorted by class.

Karimireddy et al., "SCAFFOLD", ICML 2020, arXiv:1910.06378, section 7: s % of the data are dealt at random,
the others are sorted by label and dealt one piece each. Run it from the folder of this file:

    rayfl run quickstart partition='{name: similarity:Similarity, share: 0.1}'
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from rayfl.data.partition import Groups, Labels, Owners, Scheme


@dataclass(frozen=True, kw_only=True)
class Similarity(Scheme):
    """A share of the samples at random, the others sorted by class."""

    share: Annotated[float, Field(ge=0, le=1, description="s, dealt at random")] = 0.1

    @property
    def by_class(self) -> bool:
        return True

    def assign(
        self, labels: Labels, clients: int, rng: np.random.Generator, groups: Groups = None
    ) -> Owners:
        order = rng.permutation(len(labels))  # all that is random comes from the generator
        alike, others = np.split(order, [round(self.share * len(labels))])
        by_label = others[np.argsort(labels[others], kind="stable")]
        owner = np.empty(len(labels), np.int64)
        for part in (alike, by_label):
            owner[part] = np.arange(len(part)) * clients // max(len(part), 1)
        return owner
