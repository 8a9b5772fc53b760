"""Every method of the registry once more: a plain numpy program on quadratic clients.

Written from the papers' formulas, client by client and step by step, in float64 and without a line of
rayfl, so that `test_golden.py` can hold the two against each other.

Client i minimises f_i(y) = 1/2 (y - b)^T A_i (y - b) where its minibatch moves b: b = b[r, i, k] in
local step k of round r. Both passes of a SAM step see the same minibatch.

Notation: N clients, round r, cohort S, K_i local steps of client i, eta the learning rate of the round,
eta_g the server's, x server parameters, y local parameters, D_i = y_K - start, D its mean over the
cohort, g_i = -D_i / (K_i eta). Momenta and control variates point uphill, FedAvgM's and FedNSAM's m
excepted: it is a displacement of x. Each generator yields what there is to compare after every round.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from numpy.linalg import norm


class Federation(NamedTuple):
    """Everything about a federated training but the method."""

    A: Array
    """`[N, P, P]`, symmetric and positive definite."""
    b: Array
    """`[R, N, K, P]`."""
    x0: Array
    """`[P]`."""
    cohorts: tuple[tuple[int, ...], ...]
    """S of each round."""
    K: tuple[int, ...]
    """K_i of each client."""
    eta: tuple[float, ...]
    """Learning rate of each round."""
    wd: float = 0.0
    C: float | None = None
    """Clip of each direction; None: no clip."""

    @property
    def N(self) -> int:
        return len(self.A)

    def gradient(self, r: int, i: int, k: int, y: Array) -> Array:
        return self.A[i] @ (y - self.b[r, i, k])

    def step(self, r: int, y: Array, d: Array) -> Array:
        """y - eta (clip_C(d) + wd y), with clip_C(d) = d min(1, C / (||d|| + 1e-6))."""
        clip = 1.0 if self.C is None else min(1.0, self.C / (norm(d) + 1e-6))
        return y - self.eta[r] * (clip * d + self.wd * y)


class Outcome(NamedTuple):
    """The state after a round."""

    x: Array
    server: dict[str, Array | float]
    memories: dict[str, Array]
    """`[N, P]` each: one row a client."""


def fedavg(f: Federation, *, server_lr: float = 1.0) -> Iterator[Outcome]:
    x = f.x0
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y))
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        yield Outcome(x, {}, {})


def fedavgm(f: Federation, *, gamma: float) -> Iterator[Outcome]:
    x, m = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y))
            D = D + (y - x) / len(S)
        m = gamma * m + D
        x = x + m
        yield Outcome(x, {"m": m}, {})


def fedcm(f: Federation, *, alpha: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    x, Delta = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, alpha * f.gradient(r, i, k, y) + (1 - alpha) * Delta)
            D = D + (y - x) / len(S)
        mean_K = np.mean([f.K[i] for i in S])
        x, Delta = x + server_lr * D, -D / (mean_K * f.eta[r])
        yield Outcome(x, {"Delta": Delta}, {})


def scaffold(f: Federation, *, server_lr: float = 1.0) -> Iterator[Outcome]:
    """Option II; the server adds 1/N (not 1/S) of the cohort's changes."""
    x, c, c_i = f.x0, np.zeros_like(f.x0), np.zeros((f.N, f.x0.size))
    for r, S in enumerate(f.cohorts):
        D, c_i_new = np.zeros_like(x), c_i.copy()
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y) - c_i[i] + c)
            c_i_new[i] = c_i[i] - c + (x - y) / (f.K[i] * f.eta[r])
            D = D + (y - x) / len(S)
        x, c, c_i = x + server_lr * D, c + (c_i_new - c_i).sum(axis=0) / f.N, c_i_new
        yield Outcome(x, {"c": c}, {"c_i": c_i})


def fedsam(f: Federation, *, rho: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    x = f.x0
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                e = rho * g / (norm(g) + 1e-12)
                y = f.step(r, y, f.gradient(r, i, k, y + e))
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        yield Outcome(x, {}, {})


def fednsam(f: Federation, *, gamma: float, rho: float) -> Iterator[Outcome]:
    """Clients start at the extrapolated z = x + gamma m and run local SAM."""
    x, m = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        z, D = x + gamma * m, np.zeros_like(x)
        for i in S:
            y = z
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                e = rho * g / (norm(g) + 1e-12)
                y = f.step(r, y, f.gradient(r, i, k, y + e))
            D = D + (y - z) / len(S)
        m = gamma * m + D
        x = x + m
        yield Outcome(x, {"m": m}, {})


def fednsam_momentum(f: Federation, *, gamma: float, rho: float) -> Iterator[Outcome]:
    """Clients start at x; the momentum is both the look-ahead and the perturbation of every step."""
    x, m = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                e = -rho * m / norm(m) if m.any() else 0.0
                y = f.step(r, y, f.gradient(r, i, k, y + gamma * m + e))
            D = D + (y - x) / len(S)
        m = gamma * m + D
        x = x + m
        yield Outcome(x, {"m": m}, {})


def fedwmsam(
    f: Federation,
    *,
    rho: float,
    alpha: float,
    ema: float = 0.01,
    alpha_min: float = 0.1,
    alpha_max: float = 0.9,
    adaptive: bool = True,
    control_variates: bool = True,
    perturb_sign: int = 1,
    lookahead_scale: float | str = 1.0,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """Needs alpha < 1: Delta_i = Delta + alpha / (1 - alpha) (c - c_i) is written as the paper does."""
    x, Delta, c, c_i = f.x0, np.zeros_like(f.x0), np.zeros_like(f.x0), np.zeros((f.N, f.x0.size))
    for r, S in enumerate(f.cohorts):
        eta, D, alignments, c_i_new = f.eta[r], np.zeros_like(x), [], c_i.copy()
        s = eta if lookahead_scale == "lr" else float(lookahead_scale)
        for i in S:
            Delta_i = Delta + alpha / (1 - alpha) * (c - c_i[i])
            y = x
            for b in range(f.K[i]):
                delta = (x + b * s * Delta_i) - y
                e = perturb_sign * rho * delta / norm(delta) if delta.any() else 0.0
                v = alpha * f.gradient(r, i, b, y + e) + (1 - alpha) * Delta_i
                y = f.step(r, y, v)
            g_i = (x - y) / (f.K[i] * eta)
            if Delta.any():
                alignments.append(g_i @ Delta / (norm(g_i) * norm(Delta)))
            if control_variates:
                c_i_new[i] = c_i[i] - c + g_i
            D = D + (y - x) / len(S)
        if adaptive and Delta.any():
            target = min(max(1 - np.mean(alignments), alpha_min), alpha_max)
            alpha = (1 - ema) * alpha + ema * target
        mean_K = np.mean([f.K[i] for i in S])
        x, Delta = x + server_lr * D, -D / (mean_K * eta)
        c, c_i = c + (c_i_new - c_i).sum(axis=0) / f.N, c_i_new
        server = {"Delta": Delta, "alpha": alpha} | ({"c": c} if control_variates else {})
        yield Outcome(x, server, {"c_i": c_i} if control_variates else {})


METHODS = {
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "fedcm": fedcm,
    "fednsam": fednsam,
    "fednsam_momentum": fednsam_momentum,
    "fedsam": fedsam,
    "fedwmsam": fedwmsam,
    "scaffold": scaffold,
}
