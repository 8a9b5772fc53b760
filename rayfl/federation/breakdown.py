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

Clients with equal samples of every cell have the same accuracy, which is computed once: of a million
clients with a few samples each there are few that differ. Where a client is a group of its own, all do; then
an evaluation costs what the test samples know of, not what there is of clients.

Shapes: n test samples, K cells that they have, N clients, D distributions that some client has, C classes.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError

# With more domains than this (the writers of handwriting, say) no curves by name are kept.
NAMED_DOMAINS = 20


class Holdings(NamedTuple):
    """Training samples of each cell that clients have, of those cells that have test samples."""

    of_client: np.ndarray  # number of each client's distribution, int64 `[N]`
    clients: np.ndarray  # clients of each distribution, int64 `[D]`
    known: np.ndarray  # distributions that have such a cell, ascending, int64 `[E]`
    row: np.ndarray  # place in `known`, `[m]`, as `cell` and `share`: only what is there
    cell: np.ndarray
    share: np.ndarray  # p_i of the cell, float64


@dataclass(frozen=True, kw_only=True, eq=False)
class Breakdown:
    """Metrics that follow from the test samples which were predicted correctly."""

    cell: np.ndarray  # number, among the K, of each test sample's cell, int64 `[n]`
    label: np.ndarray  # class of each cell, int64 `[K]`
    domain: np.ndarray | None  # of each cell, numbered without gaps, int64 `[K]`; None: not known
    classes: tuple[str, ...]
    domains: tuple[str, ...]  # names of metrics, by that number; empty: too many, or not known
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
        cells, cell = np.unique(_cells(y_test, group_test, len(classes)), return_inverse=True)
        domain, domains = None, ()
        if known:
            groups, domain = np.unique(cells // len(classes), return_inverse=True)
            if len(groups) <= NAMED_DOMAINS:
                names = metric_names(data.groups)
                domains = tuple(names[group] for group in groups)
        return cls(
            cell=cell,
            label=cells % len(classes),
            domain=domain,
            classes=classes,
            domains=domains,
            per_class=per_class,
            per_client=per_client,
            holdings=_holdings(train, cells, partition)
            if known or data.kind == "classes"
            else None,
        )

    def metrics(self, correct: np.ndarray) -> dict[str, float]:
        """Metrics of one evaluation; `correct [n]`: which predictions were right, or their share."""
        right, metrics = np.bincount(self.cell, correct), dict[str, float]()
        if self.per_class:
            of_class = np.bincount(self.label, right), np.bincount(self.label, self._total)
            keys = metric_names(self.classes)
            counts = zip(keys, *of_class, strict=False)  # the last may have no test samples
            metrics |= {f"test/class/{key}": float(r / t) for key, r, t in counts if t > 0}
        if self.domain is not None:
            accuracies = np.bincount(self.domain, right) / np.bincount(self.domain, self._total)
            named = zip(self.domains, accuracies, strict=False)
            metrics |= {f"test/domain/{name}": float(accuracy) for name, accuracy in named}
            metrics["test/domain_mean"] = float(accuracies.mean())
            metrics["test/domain_worst"] = float(accuracies.min())
        if (held := self.holdings) is not None and self.per_client:
            found = client_statistics(self._accuracies(correct), held.clients[held.known])
            metrics |= {f"client/accuracy_{name}": value for name, value in found.items()}
        return metrics

    def clients(self, correct: np.ndarray) -> np.ndarray:
        """Accuracy of each client, `[N]`; NaN where the test set has none of its cells."""
        assert self.holdings is not None
        accuracies = np.full(len(self.holdings.clients), np.nan)
        accuracies[self.holdings.known] = self._accuracies(correct)
        return accuracies[self.holdings.of_client]

    def of_client(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        """The test samples of the client's cells, ascending, and what each counts in acc_i, `[m]`.

        They count 1 in all; there are none if the test set has none of the cells.
        """
        assert self.holdings is not None
        held, share = self.holdings, np.zeros(len(self._total))
        rows = held.known[held.row] == held.of_client[client]
        share[held.cell[rows]] = held.share[rows]
        counts = (share / self._total)[self.cell]
        samples = np.flatnonzero(counts)
        return samples, counts[samples]

    def _accuracies(self, correct: np.ndarray) -> np.ndarray:
        """Accuracy on each distribution that is known, `[E]`."""
        assert self.holdings is not None
        accuracy = np.bincount(self.cell, correct) / self._total
        return np.bincount(self.holdings.row, self.holdings.share * accuracy[self.holdings.cell])

    @functools.cached_property
    def _total(self) -> np.ndarray:
        """Test samples of each cell, int64 `[K]`."""
        return np.bincount(self.cell)


def _cells(labels: np.ndarray, groups: np.ndarray | None, num_classes: int) -> np.ndarray:
    return labels if groups is None else groups * num_classes + labels


def _holdings(train: np.ndarray, tested: np.ndarray, partition: Partition) -> Holdings:
    """Holdings by the cells of all train samples `[n]` and those that have test samples, ascending `[K]`."""
    width = int(train.max()) + 1
    held = np.repeat(np.arange(len(partition.sizes)) * width, partition.sizes)
    held += train[partition.indices]
    pairs, samples = np.unique(held, return_counts=True)
    client, cell = np.divmod(pairs, width)
    of_client = _distributions(client, pd.factorize(cell * (samples.max() + 1) + samples)[0])
    _, first, clients = np.unique(of_client, return_index=True, return_counts=True)
    place = np.minimum(np.searchsorted(tested, cell), len(tested) - 1)
    is_first = np.zeros(len(of_client), dtype=bool)
    is_first[first] = True
    kept = is_first[client] & (tested[place] == cell)
    known, row = np.unique(of_client[client[kept]], return_inverse=True)
    share = samples[kept] / np.bincount(row, samples[kept])[row]
    return Holdings(of_client, clients, known, row, place[kept], share)


def _distributions(client: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Number the distributions in the order of their first clients: that of each client, int64 `[N]`.

    `client [m]` ascends; clients with equal contents, `[m]`, row by row, have the same distribution. They are
    told apart by their first rows, then by the second ones too, and so on.
    """
    starts = np.flatnonzero(np.diff(client, prepend=-1))
    rows = np.diff(starts, append=len(client))
    found, longest_first = np.zeros(len(rows), np.int64), np.argsort(-rows, kind="stable")
    with_more = len(rows) - np.searchsorted(np.sort(rows), np.arange(rows.max()), side="right")
    for k, count in enumerate(with_more):
        some = longest_first[:count]
        found[some] = pd.factorize(found[some] * len(client) + content[starts[some] + k])[0]
    # A client without a k-th row has its number from one row before.
    return pd.factorize(found * (rows.max() + 1) + rows)[0]


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
        """Return what np.quantile gives for the values of all clients."""
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
