"""Everything that a server and its clients are made of."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rayfl.algorithms.base import Algorithm
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.federation.averaging import Rule
from rayfl.federation.breakdown import Breakdown
from rayfl.federation.own_metrics import OwnMetrics
from rayfl.federation.privacy import PrivateRounds
from rayfl.federation.sampling import (
    OwnSampling,
    Sampling,
    cohort_size,
    nobody_drawn,
    sample_cohort,
)
from rayfl.federation.scores import Scoring
from rayfl.training.settings import LocalSettings
from rayfl.training.units import EvaluationResult, Split

if TYPE_CHECKING:
    from rayfl.federation.callbacks import Callbacks
    from rayfl.federation.measurer import Measurer
    from rayfl.federation.personal import Personalisation


class UnitsPerRound(NamedTuple):
    """Work units of a round, on either type of device."""

    on_cpus: int
    on_gpus: int


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """What evaluations make of a model's outputs on the data's own test set, and on held-out samples."""

    scoring: Scoring
    breakdown: Breakdown  # metrics that follow from the correct predictions, beside their share
    own_metrics: OwnMetrics = field(default_factory=OwnMetrics)

    def of_split(
        self, split: Split, loss: float, scores: np.ndarray, parts: list[EvaluationResult]
    ) -> dict[str, float]:
        """Metrics of a whole split; `loss`: its mean, `scores [n]`; `parts`: results of its units."""
        return self.scoring.metrics(split, loss, scores) | self.own_metrics.metrics(split, parts)


@dataclass(frozen=True, kw_only=True)
class FederationSpec:
    """The rounds of one experiment."""

    seed: int
    clients: int
    participation: float  # S / N as asked for
    sampling: Sampling | OwnSampling
    sizes: np.ndarray  # training samples of each client, int64 `[N]`
    client_dropout: float  # probability that a client of a cohort is lost, and its update with it
    rounds: int
    lrs: tuple[float, ...]  # local learning rate of each round
    clients_per_unit: int
    clients_per_gpu_unit: int  # the same where clients train on GPUs
    eval_every: int
    test_samples: int
    validation_samples: int  # 0: none are held out
    total_weight: float  # of all N clients in a cohort's mean
    evaluation: EvaluationSpec
    privacy: PrivateRounds | None = None  # None: sums are released as they are

    @property
    def cohort_size(self) -> int:
        """S, on average where it varies."""
        return cohort_size(self.participation, self.clients)

    @property
    def units_per_round(self) -> UnitsPerRound:
        sizes = self.clients_per_unit, self.clients_per_gpu_unit
        return UnitsPerRound(*(-(-self.cohort_size // size) for size in sizes))

    def on_gpus(self) -> "FederationSpec":
        """The rounds as GPUs run them."""
        return replace(self, clients_per_unit=self.clients_per_gpu_unit)

    def cohort(self, round: int) -> list[int]:
        """Client ids of this round, ascending, whether they will come back or not."""
        return sample_cohort(self.sampling, self.participation, self.sizes, self.seed, round)

    def is_evaluated(self, round: int) -> bool:
        """True if the global model is evaluated after this round."""
        return round % self.eval_every == 0 or round == self.rounds

    def is_empty(self, round: int) -> bool:
        """True if nobody was drawn, and a client of another draw stands in."""
        return nobody_drawn(self.sampling, self.participation, self.sizes, self.seed, round)


class Diagnosis(NamedTuple):
    """Measurements that a server makes of its own state, and when."""

    every: int  # rounds; after the last one too
    measurer: "Measurer"

    def is_due(self, round: int, rounds: int) -> bool:
        """True if it is measured after this round."""
        return round % self.every == 0 or round == rounds


class ServerSpec(NamedTuple):
    """Arguments of a `Server`, without its pool."""

    algorithm: Algorithm
    name: str  # the algorithm's, as users write it
    w: np.ndarray  # first parameters `[P]`
    buffers: np.ndarray  # first buffers `[Q]`
    federation: FederationSpec
    diagnosis: Diagnosis | None = None  # None: nothing
    average: Rule | None = None  # of the global models, evaluated beside them
    personalisation: "Personalisation | None" = None
    callbacks: "Callbacks | None" = None


class ClientSpec(NamedTuple):
    """An experiment as its clients need it. A runtime may hold any field by reference."""

    algorithm: Algorithm
    name: str  # the algorithm's, as users write it
    model: bytes  # as `packed`
    dataset: Dataset
    partition: Partition
    settings: LocalSettings
