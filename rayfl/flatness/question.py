"""The question that is asked about the flatness of one model."""

from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from rayfl.flatness.measures import Effort

Measure = Literal["gap", "hessian", "alignment", "variance", "landscape"]
MEASURES: tuple[Measure, ...] = ("gap", "hessian", "alignment", "variance", "landscape")
ACROSS: tuple[Measure, ...] = ("alignment", "variance", "landscape")
"""Measures across clients, which have training samples alone."""
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Question:
    """Measures, and what they are made on."""

    measures: tuple[Measure, ...] = MEASURES
    splits: tuple[Split, ...] = SPLITS
    samples: int = 2048
    """Samples of each split, and of each client, that a loss is the mean over, at most."""
    clients: int = 8
    """Clients of the next round's cohort whose training is run again, at most."""
    average: int = 1
    """w is the mean of so many of the last checkpoints."""
    effort: Effort = field(default_factory=Effort)

    @property
    def pieces(self) -> list[tuple[Measure, Split]]:
        """Each measure with the split that it is made on."""
        train: Split = "train"
        around: list[Measure] = [m for m in self.measures if m not in ACROSS]
        across: list[Measure] = [m for m in self.measures if m in ACROSS]
        return [*product(around, self.splits), *product(across, (train,))]
