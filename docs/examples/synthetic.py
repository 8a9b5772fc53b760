"""Synthetic(alpha, beta): clients whose features and whose labels both follow rules of their own.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127, section 5.1:

    y = argmax(W_k x + b_k),  W_k, b_k ~ N(u_k, 1),  u_k ~ N(0, alpha)
    x ~ N(v_k, Sigma),  Sigma_jj = j^-1.2,  v_k ~ N(B_k, 1),  B_k ~ N(0, beta)

Legend: k = client, j = feature; alpha and beta are variances. Sizes are lognormal(4, 2) + 50, as in the
released code, but at most 1000. A fifth of the samples is tested on. Run it from the folder of this file:

    rayfl run quickstart data='{name: synthetic:Synthetic, beta: 0.5}' partition='{name: by_group}' \
        federation.clients=30 federation.cohort=10
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Source, from_arrays

FEATURES, CLASSES = 60, 10


@dataclass(frozen=True, kw_only=True)
class Synthetic(Source):
    """Data of a linear model of each client."""

    clients: Annotated[int, Field(gt=0, description="K, groups of the data")] = 30
    alpha: Annotated[float, Field(ge=0, description="how much the models differ")] = 1.0
    beta: Annotated[float, Field(ge=0, description="how much the features differ")] = 1.0
    draw: Annotated[int, Field(ge=0, description="seed of the data, whatever the run's is")] = 0

    def read(self) -> Dataset:
        rng = np.random.default_rng(self.draw)
        deviation = np.arange(1, FEATURES + 1) ** -0.6  # the root of Sigma
        samples, labels, owners = [], [], []
        for k in range(self.clients):
            n = min(1000, 50 + int(rng.lognormal(4, 2)))
            u, b = rng.normal(0, self.alpha**0.5), rng.normal(0, self.beta**0.5)
            weight, bias = rng.normal(u, 1, (CLASSES, FEATURES)), rng.normal(u, 1, CLASSES)
            x = rng.normal(rng.normal(b, 1, FEATURES), deviation, (n, FEATURES))
            samples.append(x)
            labels.append((x @ weight.T + bias).argmax(1))
            owners.append(np.full(n, k))
        x, y, owner = (np.concatenate(parts) for parts in (samples, labels, owners))
        test = np.arange(len(y)) % 5 == 4
        train = ~test
        # Each class by its number, also one that no client happens to have.
        classes = [str(c) for c in range(CLASSES)]
        return from_arrays(
            "synthetic",
            (x[train].astype(np.float32), y[train]),
            (x[test].astype(np.float32), y[test]),
            classes=classes,
            groups=(owner[train], owner[test]),
        )
