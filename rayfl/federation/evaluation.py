"""Accuracy beyond the mean: of each class, of each domain, and of each client.

A cell is one class within one group (domain): group * classes + label. Data without groups, or without
those of the test samples, are one group.

The accuracy of client i is the expected accuracy of the global model on the distribution p_i of the
client's own training samples over the cells,

    acc_i = sum_cell p_i(cell) acc(cell),

with acc(cell) that of the test samples in the cell. It is exact where clients differ in how often they
have a cell (label and domain skew), but not in what the samples of one cell look like. Of a cell without
test samples nothing is known: p_i is renormalised over the others, and a client that has no others has no
accuracy and counts in no statistic.

Tokens that are predicted have no classes: their cells are the groups, and the accuracy of a sample is the
share of its tokens that are right. Without groups nothing is known of clients. Numbers have no accuracy.

Clients with equal samples of every cell have the same accuracy, which is computed once: of a hundred thousand
clients with a few samples each there are few that differ.

Shapes: n test samples, N clients, D distributions that some client has, G groups, C classes.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError

# Of more domains than this (the writers of handwriting, say) no curves by name are kept.
NAMED_DOMAINS = 20


class Holdings(NamedTuple):
    """Training samples of each cell that clients have."""

    of_client: np.ndarray  # number of each client's distribution, int64 `[N]`
    clients: np.ndarray  # clients of each distribution, int64 `[D]`
    distribution: np.ndarray  # `[m]`, as `cell` and `samples`: only what is there
    cell: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Breakdown:
    """Metrics that follow from the test samples which were predicted correctly."""

    cells: np.ndarray  # cell of each test sample, int64 `[n]`
    classes: tuple[str, ...]
    groups: tuple[str, ...]  # empty if the test samples have none that is known
    per_class: bool
    per_client: bool
    holdings: Holdings | None  # None: nothing is known of the clients

    @classmethod
    def of(cls, data: Dataset, partition: Partition, per_class: bool, per_client: bool) -> Self:
        has_groups = data.group_train is not None and data.group_test is not None
        known = has_groups and data.kind != "numbers"
        group_train, group_test = (data.group_train, data.group_test) if known else (None, None)
        if data.kind == "classes":
            classes, y_train, y_test = data.classes, data.y_train, data.y_test
        elif per_class:
            raise ConfigError(
                key="evaluation.per_class",
                value=True,
                allowed=f"false: the samples of {data.name!r} have {data.kind} to predict, no classes",
            )
        else:
            classes = ("",)
            y_train, y_test = (np.zeros(len(y), np.int64) for y in (data.y_train, data.y_test))
        train = _cells(y_train, group_train, len(classes))
        return cls(
            cells=_cells(y_test, group_test, len(classes)),
            classes=classes,
            groups=data.groups if known else (),
            per_class=per_class,
            per_client=per_client,
            holdings=_holdings(train, partition) if known or data.kind == "classes" else None,
        )

    def metrics(self, correct: np.ndarray) -> dict[str, float]:
        """Metrics of one evaluation; `correct [n]`: which predictions were right, or their share."""
        right, total = self._counts(correct)
        metrics: dict[str, float] = {}
        if self.per_class:
            metrics |= _by_name("test/class/", self.classes, right.sum(0), total.sum(0))
        if self.groups:
            domains = _by_name("test/domain/", self.groups, right.sum(1), total.sum(1))
            metrics |= domains if len(domains) <= NAMED_DOMAINS else {}
            metrics["test/domain_mean"] = float(np.mean(list(domains.values())))
            metrics["test/domain_worst"] = min(domains.values())
        if self.holdings is not None and self.per_client:
            found = client_statistics(self._accuracies(correct), self.holdings.clients)
            metrics |= {f"client/accuracy_{name}": value for name, value in found.items()}
        return metrics

    def clients(self, correct: np.ndarray) -> np.ndarray:
        """Accuracy of each client, `[N]`; NaN where the test set has none of its cells."""
        assert self.holdings is not None
        return self._accuracies(correct)[self.holdings.of_client]

    def of_client(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        """The test samples of the client's cells, ascending, and what each counts in acc_i, `[m]`.

        They count 1 in all; there are none if the test set has none of the cells.
        """
        assert self.holdings is not None
        rows = self.holdings.distribution == self.holdings.of_client[client]
        share = np.zeros(len(self._total))
        share[self.holdings.cell[rows]] = np.nan_to_num(self._shares[rows])
        counts = (share / np.maximum(self._total, 1))[self.cells]
        samples = np.flatnonzero(counts)
        return samples, counts[samples]

    def _accuracies(self, correct: np.ndarray) -> np.ndarray:
        """Accuracy on each distribution, `[D]`; NaN where the test set has none of its cells."""
        assert self.holdings is not None
        right, total = (counts.ravel() for counts in self._counts(correct))
        accuracy = right / np.maximum(total, 1)
        return np.bincount(self.holdings.distribution, self._shares * accuracy[self.holdings.cell])

    @functools.cached_property
    def _shares(self) -> np.ndarray:
        """p_i of each of the `holdings`: 0 where no test samples are, NaN if there are no others."""
        assert self.holdings is not None
        known = self.holdings.samples * (self._total[self.holdings.cell] > 0)
        with np.errstate(invalid="ignore"):  # 0 / 0
            row = self.holdings.distribution
            return known / np.bincount(row, known)[row]

    def _counts(self, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Correct predictions and test samples of each cell, `[G, C]`."""
        right = np.bincount(self.cells, correct, len(self._total))
        return right.reshape(self._shape), self._total.reshape(self._shape)

    @property
    def _shape(self) -> tuple[int, int]:
        return max(1, len(self.groups)), len(self.classes)

    @functools.cached_property
    def _total(self) -> np.ndarray:
        """Test samples of each cell, int64 `[G * C]`."""
        return np.bincount(self.cells, minlength=math.prod(self._shape))


def _cells(labels: np.ndarray, groups: np.ndarray | None, num_classes: int) -> np.ndarray:
    return labels if groups is None else groups * num_classes + labels


def _holdings(cells: np.ndarray, partition: Partition) -> Holdings:
    owner = np.repeat(np.arange(len(partition.sizes)), partition.sizes)
    width = int(cells.max()) + 1
    pairs, samples = np.unique(owner * width + cells[partition.indices], return_counts=True)
    clients, held = pairs // width, np.stack([pairs % width, samples], axis=1)
    # Each client's rows as bytes: equal ones are the same distribution.
    ends = np.flatnonzero(np.diff(clients, append=-1)) + 1
    starts = [0, *ends[:-1]]
    known: dict[bytes, int] = {}
    of_client = np.array(
        [
            known.setdefault(held[a:b].tobytes(), len(known))
            for a, b in zip(starts, ends, strict=True)
        ]
    )
    _, first, counts = np.unique(of_client, return_index=True, return_counts=True)
    chosen = np.isin(clients, first)
    return Holdings(of_client, counts, of_client[clients[chosen]], *held[chosen].T)


def _by_name(
    prefix: str, names: Sequence[str], right: np.ndarray, total: np.ndarray
) -> dict[str, float]:
    """Accuracy of each that has test samples."""
    keys = metric_names(names)
    return {
        prefix + key: float(r / t) for key, r, t in zip(keys, right, total, strict=True) if t > 0
    }


def metric_names(names: Sequence[str]) -> list[str]:
    """The names without what MLflow takes in no name of a metric; numbered where that made two equal."""
    keys = [re.sub(r"[^\w\- .]", "_", name).strip(" .")[:100] for name in names]
    if len(set(keys)) == len(keys) and all(keys):
        return keys
    return [f"{i} {key}" for i, key in enumerate(keys)]


def client_statistics(accuracies: np.ndarray, clients: np.ndarray) -> dict[str, float]:
    """Mean, quantiles and the mean of the worst tenth (rounded up) over the clients.

    `accuracies [D]`, each that of so many `clients [D]`.
    """
    known = ~np.isnan(accuracies)
    order = np.argsort(accuracies[known])
    values, counts = accuracies[known][order], clients[known][order]
    if len(values) == 0:
        return {}
    until = np.cumsum(counts)  # clients up to and with each value

    def quantile(q: float) -> float:
        """As np.quantile gives it for the values of all clients."""
        place = q * (until[-1] - 1)
        below, above = np.searchsorted(until, [int(place), int(np.ceil(place))], side="right")
        return values[below] + (place - int(place)) * (values[above] - values[below])

    tenth = -(-until[-1] // 10)
    of_worst = np.clip(tenth - (until - counts), 0, counts)
    statistics = {
        "mean": values @ counts / until[-1],
        "p10": quantile(0.1),
        "p50": quantile(0.5),
        "p90": quantile(0.9),
        "worst10": values @ of_worst / tenth,
    }
    return {name: float(value) for name, value in statistics.items()}
