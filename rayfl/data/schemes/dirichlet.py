"""Label skew from a Dirichlet distribution.

`dirichlet` is the per-client class prior of the FedWMSAM and FedNSAM code without its re-use of samples;
`dirichlet_per_class` is Li et al., "Federated Learning on Non-IID Data Silos", ICDE 2022, arXiv:2102.02079.

Both draw in logarithms. A small alpha gives proportions that no float holds, and it is they that decide
once the large ones have run out.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.random import Generator
from pydantic import Field

from rayfl.data.partition import Groups, Labels, Owners, Scheme
from rayfl.data.schemes.dealing import by_class, deal, equal_sizes
from rayfl.errors import ConfigError

_CHUNK = 2048  # samples drawn in one vectorised step of `dirichlet`
_ATTEMPTS = 200  # draws of `dirichlet_per_class` before it gives up
# It gives up at once after a draw with more clients than this short of samples: where so many are to be
# expected, a draw with none has a chance of e^-100 or less.
_HOPELESS = 200
# From here on, NumPy's own Dirichlet is one of these gammas too, and they cannot underflow.
_SMALLEST_SHAPE = 0.1

_Alpha = Annotated[
    float, Field(gt=0, description="Dirichlet concentration; small = skewed, large = IID")
]


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Scheme):
    """Equal sizes; each client has its own class prior p_i ~ Dir(alpha)."""

    alpha: _Alpha = 0.1

    @property
    def by_class(self) -> bool:
        return True

    def assign(self, labels: Labels, clients: int, rng: Generator, groups: Groups = None) -> Owners:
        """Fill the clients in random order, so that none is left with the leftovers of the others.

        A class that has run out is masked, and the client's prior renormalised over the rest.
        """
        left = np.bincount(labels)
        priors = log_gammas(self.alpha, (clients, len(left)), rng)  # [N, C]
        slots = rng.permutation(np.repeat(np.arange(clients), equal_sizes(len(labels), clients)))
        uniforms = rng.random(len(slots))
        drawn = np.empty(len(slots), dtype=np.int64)  # class of each slot
        start = 0
        while start < len(slots):
            part = slice(start, start + _CHUNK)
            classes = draw_classes(priors[slots[part]], left > 0, uniforms[part])
            taken = np.bincount(classes, minlength=len(left))
            if ((taken >= left) & (left > 0)).any():
                # Classes are masked once they run out: keep the draws up to there, and draw the others
                # again.
                running = (classes[:, None] == np.arange(len(left))).cumsum(axis=0)
                emptied = ((running == left) & (left > 0)).any(axis=1)
                classes = classes[: int(emptied.argmax()) + 1]
                taken = running[len(classes) - 1]
            drawn[start : start + len(classes)] = classes
            left = left - taken
            start += len(classes)
        del priors, uniforms  # a million clients have them in hundreds of MB
        # By class, and by client in it: as `deal`, without a count for each client and class.
        drawn *= clients
        drawn += slots
        drawn.sort()
        drawn %= clients
        slots[by_class(labels, rng)] = drawn
        return slots


@dataclass(frozen=True, kw_only=True)
class DirichletPerClass(Scheme):
    """Unequal sizes; each class is spread over the clients by proportions ~ Dir(alpha)."""

    alpha: _Alpha = 0.1
    min_samples: Annotated[
        int, Field(ge=1, description="draw again until every client has this many samples")
    ] = 10

    @property
    def by_class(self) -> bool:
        return True

    def assign(self, labels: Labels, clients: int, rng: Generator, groups: Groups = None) -> Owners:
        key = "partition.min_samples"
        if self.min_samples * clients > len(labels):
            raise ConfigError(
                f"{clients} clients would need {self.min_samples * clients} samples but "
                f"there are {len(labels)}; at most {len(labels) // clients} is possible",
                *(key, self.min_samples),
            )
        for draws in range(1, _ATTEMPTS + 1):  # noqa: B007
            counts = self.draw_counts(np.bincount(labels), clients, rng)
            short = (counts.sum(axis=1) < self.min_samples).sum()
            if not short:
                return deal(labels, counts, rng)
            if short > _HOPELESS:
                break
        raise ConfigError(
            f"in {draws} draw{'s' if draws > 1 else ''} some client always had fewer than {key} = "
            f"{self.min_samples} samples; raise partition.alpha, lower partition.min_samples or "
            f"federation.clients ({clients}), or use partition.name=dirichlet (equal sizes)",
            key="partition.alpha",
            value=self.alpha,
            keys=(key, "federation.clients", "partition.name"),
        )

    def draw_counts(
        self, class_sizes: np.ndarray, clients: int, rng: Generator
    ) -> np.ndarray:  # [N, C]
        counts = np.zeros((clients, len(class_sizes)), dtype=np.int64)
        sizes = np.zeros(clients, dtype=np.int64)
        for k, class_size in enumerate(class_sizes):
            unfilled = sizes * clients < class_sizes.sum()  # a client with n / N gets no more
            logs = log_gammas(self.alpha, (clients,), rng)
            shares = np.cumsum(_proportions(logs, unfilled))
            cuts = (shares / shares[-1] * class_size).astype(np.int64)
            counts[:, k] = np.diff(cuts, prepend=0)
            sizes += counts[:, k]
        return counts


def log_gammas(alpha: float, shape: tuple[int, ...], rng: Generator) -> np.ndarray:
    """Logarithms of draws from Gamma(alpha): any of them, divided by their sum, are a draw from Dir(alpha).

    Below `_SMALLEST_SHAPE` as Gamma(alpha + 1) U^(1 / alpha) with a uniform U: the same distribution, whose
    logarithm is a sum.
    """
    if alpha >= _SMALLEST_SHAPE:
        return np.log(rng.standard_gamma(alpha, shape))
    # -log(U) is exponential. Divided by less than 1e-300 it might overflow; the order is the same.
    powers = rng.standard_exponential(shape) / max(alpha, 1e-300)
    return np.log(rng.standard_gamma(alpha + 1, shape)) - powers


def _proportions(logs: np.ndarray, available: np.ndarray) -> np.ndarray:
    """exp(logs), the largest available one scaled to 1, over the last axis; 0 where not available."""
    masked = np.where(available, logs, -np.inf)
    return np.exp(masked - masked.max(axis=-1, keepdims=True))


def draw_classes(logs: np.ndarray, available: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One class per row of log priors [m, C] by inverse CDF, among the available classes [C] only."""
    cdf = np.cumsum(_proportions(logs, available), axis=1)
    reached = uniforms[:, None] * cdf[:, -1:]
    cdf[:, np.flatnonzero(available)[-1] :] = np.inf  # rounding never draws past the last class
    return (reached >= cdf).sum(axis=1)
