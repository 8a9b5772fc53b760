"""Every method of the registry once more: a plain numpy program on quadratic clients.

Written from the papers' formulas, client by client and step by step, in float64 and without a line of
rayfl, so that `test_golden.py` can hold the two against each other.

Client i minimises f_i(y) = 1/2 (y - b)^T A_i (y - b) where its minibatch moves b: b = b[r, i, k] in
local step k of round r, and the minibatch's first half by apart[r, i, k] more. Both passes of a SAM step see
the same minibatch.

Notation: N clients, round r, cohort S, K_i local steps of client i, eta the learning rate of the round,
eta_g the server's, x server parameters, y local parameters, D_i = y_K - start, D its mean over the
cohort, g_i = -D_i / (K_i eta). Momenta and control variates point uphill, but these are displacements:
m of FedAvgM, FedNSAM, FedACG and FedAdam, h of FedDyn. Moon, FedGMT and FedSOL need a model's outputs:
they are y - b, of one sample. Each generator yields what there is to compare after every round.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array
from numpy.linalg import norm

# The released code without what it does otherwise than the paper.
PAPER = {
    "perturbation": "vector",
    "perturb_towards": "predicted",
    "momentum_factor": 1.0,
    "nominal_steps": False,
    "adapt_at_zero": False,
}


class Federation(NamedTuple):
    """Everything about a federated training but the method."""

    A: Array
    """`[N, P, P]`, symmetric and positive definite."""
    b: Array
    """`[R, N, K, P]`."""
    apart: Array
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
    """Clip of each direction, or of each gradient in the methods that run Adam; None: no clip."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of each tensor of the model, one after the other."""
    nominal: float = 0.0
    """E n_0 / B."""

    @property
    def N(self) -> int:
        return len(self.A)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Parameters of each tensor."""
        return tuple(map(math.prod, self.shapes))

    @property
    def places(self) -> list[Array]:
        """Where each tensor's entries are, in its shape; a kernel's channels come last in the vector."""
        places, first = [], 0
        for shape, size in zip(self.shapes, self.sizes, strict=True):
            place = first + np.arange(size)
            if len(shape) == 4:
                out, into, height, width = shape
                place = place.reshape(out, height, width, into).transpose(0, 3, 1, 2)
            places.append(place.reshape(shape))
            first += size
        return places

    @property
    def first(self) -> Array:
        """Where as many entries are as there are tensors, the first ones in torch's order."""
        return np.concatenate([place.ravel() for place in self.places])[: len(self.shapes)]

    def gradient(self, r: int, i: int, k: int, y: Array, half: bool = False) -> Array:
        """Of the whole minibatch, or of its first half."""
        return self.A[i] @ (y - self.b[r, i, k] - half * self.apart[r, i, k])

    def step(self, r: int, y: Array, d: Array) -> Array:
        """y - eta (clip_C(d) + wd y), with clip_C(d) = d min(1, C / (||d|| + 1e-6))."""
        return self.move(r, y, self.clip(d))

    def clip(self, v: Array) -> Array:
        return v if self.C is None else v * min(1.0, self.C / (norm(v) + 1e-6))

    def move(self, r: int, y: Array, d: Array) -> Array:
        """y - eta (d + wd y)."""
        return y - self.eta[r] * (d + self.wd * y)


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


def centralised(f: Federation, *, server_lr: float = 1.0) -> Iterator[Outcome]:
    """FedAvg, of the one client that there is in rayfl."""
    yield from fedavg(f, server_lr=server_lr)


def local(f: Federation, *, server_lr: float = 1.0) -> Iterator[Outcome]:
    """Each client goes on from its own last iterate; the global model stays."""
    own = np.tile(f.x0, (f.N, 1))
    for r, S in enumerate(f.cohorts):
        for i in S:
            for k in range(f.K[i]):
                own[i] = f.step(r, own[i], f.gradient(r, i, k, own[i]))
        yield Outcome(f.x0, {}, {"own": own.copy()})


def ditto(f: Federation, *, lam: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    """v_i begins at the first global model: here every client's memory is made before the first round."""
    v = np.tile(f.x0, (f.N, 1))
    before = f.x0
    for (r, S), outcome in zip(enumerate(f.cohorts), fedavg(f, server_lr=server_lr), strict=True):
        for i in S:
            for k in range(f.K[i]):
                v[i] = v[i] - f.eta[r] * (f.gradient(r, i, k, v[i]) + lam * (v[i] - before))
        before = outcome.x
        yield Outcome(outcome.x, {}, {"v": v.copy()})


def fedper(f: Federation, *, head: str, server_lr: float = 1.0) -> Iterator[Outcome]:
    yield from _with_own_heads(f, head, 0.0, server_lr)


def fedrep(
    f: Federation, *, head: str, head_share: float, server_lr: float = 1.0
) -> Iterator[Outcome]:
    yield from _with_own_heads(f, head, head_share, server_lr)


def _with_own_heads(f: Federation, head: str, share: float, server_lr: float) -> Iterator[Outcome]:
    """`share` of the steps train the head alone, the others the body alone; 0: all train both."""
    ends = np.cumsum(f.sizes)
    which = int(head) if head else len(f.sizes) - 1
    at_head = np.zeros(f.x0.size, bool)
    at_head[ends[which] - f.sizes[which] : ends[which]] = True
    x, own, seen = f.x0, np.zeros((f.N, f.x0.size)), np.zeros((f.N, 1))
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = np.where(at_head, own[i], x) if seen[i] else x
            for k in range(f.K[i]):
                trained = at_head == (k < min(share * f.K[i], f.K[i] - 1)) if share else True
                y = f.step(r, y, f.gradient(r, i, k, y) * trained)
            D = D + np.where(at_head, 0, y - x) / len(S)
            own[i], seen[i] = np.where(at_head, y, 0), 1
        x = x + server_lr * D
        yield Outcome(x, {}, {"own": own.copy(), "seen": seen.copy()})


def fednova(f: Federation, *, server_lr: float = 1.0) -> Iterator[Outcome]:
    """p_i = 1 / S; d_i is the mean of client i's gradients, weight decay and clip included."""
    x = f.x0
    for r, S in enumerate(f.cohorts):
        means = []
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y))
            means.append((x - y) / (f.eta[r] * f.K[i]))
        tau_eff = sum(f.K[i] for i in S) / len(S)
        x = x - server_lr * tau_eff * f.eta[r] * np.mean(means, axis=0)
        yield Outcome(x, {}, {})


def fedexp(f: Federation, *, epsilon: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    """With M = S and Delta_i = x - y: sum of ||Delta_i||^2 over 2 M (||mean of Delta_i||^2 + epsilon)."""
    x = f.x0
    for r, S in enumerate(f.cohorts):
        Deltas = []
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y))
            Deltas.append(x - y)
        mean = sum(Deltas) / len(S)
        eta_g = max(1.0, sum(d @ d for d in Deltas) / (2 * len(S) * (mean @ mean + epsilon)))
        x = x - server_lr * eta_g * mean
        yield Outcome(x, {"eta_g": eta_g}, {})


def fedavgm(f: Federation, *, gamma: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    x, m = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y))
            D = D + (y - x) / len(S)
        m = gamma * m + D
        x = x + server_lr * m
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


def fedgf(
    f: Federation,
    *,
    rho: float,
    rho_global: float,
    threshold: float,
    window: int,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """Before the second round there is no perturbed server x_p, and clients run SAM."""
    x, x_p, c, far = f.x0, None, 0.0, []
    for r, S in enumerate(f.cohorts):
        ends = []
        for i in S:
            y = x
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                at = y + rho * g / norm(g)
                if x_p is not None:
                    at = c * x_p + (1 - c) * at
                y = f.step(r, y, f.gradient(r, i, k, at))
            ends.append(y)
        far = [*far, float(np.mean([norm(x - y) for y in ends]) > threshold)]
        c = np.mean(far[-window:])
        x_old, x = x, x + server_lr * (np.mean(ends, axis=0) - x)
        G = x_old - x
        x_p = x + rho_global * G / norm(G)
        newest_first = np.array([*far[::-1], *[0.0] * window][:window])
        yield Outcome(x, {"G": G, "c": c, "far": newest_first}, {})


def asyncsam(
    f: Federation,
    *,
    rho: float,
    tau: int = 1,
    ascent_samples: int | str = "all",
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """Minibatches have two samples."""
    x = f.x0
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y, ascents = x, []
            for k in range(f.K[i]):
                ascents.append(f.gradient(r, i, k, y, half=ascent_samples == 1))
                g = ascents[max(k - tau, 0)]
                y = f.step(r, y, f.gradient(r, i, k, y + rho * g / norm(g)))
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        yield Outcome(x, {}, {})


def fednsam(
    f: Federation,
    *,
    gamma: float,
    rho: float,
    released_server: bool = False,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """Clients start at the extrapolated z = x + gamma m and run local SAM.

    The released server takes the new mean for the old m, which it has from its second round on.
    """
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
        old = D if released_server and r > 0 else m
        m = gamma * old + D
        x = x + server_lr * m
        yield Outcome(x, {"m": m} | ({"begun": 1.0} if released_server else {}), {})


def fednsam_momentum(
    f: Federation, *, gamma: float, rho: float, server_lr: float = 1.0
) -> Iterator[Outcome]:
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
        x = x + server_lr * m
        yield Outcome(x, {"m": m}, {})


def fedwmsam_released(
    f: Federation,
    *,
    rho: float,
    alpha: float,
    ema: float = 0.01,
    alpha_min: float = 0.1,
    alpha_max: float = 0.9,
    adaptive: bool = True,
    control_variates: bool = True,
    perturb_towards: str = "released",
    lookahead_scale: float | str = "auto",
    momentum_factor: float = 0.998,
    perturbation: str = "scalars",
    nominal_steps: bool = True,
    adapt_at_zero: bool = True,
    raw_cosine: bool = False,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """Needs alpha < 1: Delta_i = Delta + alpha / (1 - alpha) (c - c_i) is written as the paper does."""
    x, Delta, c, c_i = f.x0, np.zeros_like(f.x0), np.zeros_like(f.x0), np.zeros((f.N, f.x0.size))
    for r, S in enumerate(f.cohorts):
        eta, D, alignments, c_i_new = f.eta[r], np.zeros_like(x), [], c_i.copy()
        s = {"lr": eta, "auto": eta if perturb_towards == "predicted" else 1.0}.get(
            lookahead_scale, lookahead_scale
        )
        sign = -1 if perturb_towards == "released" else 1
        for i in S:
            Delta_i = Delta + alpha / (1 - alpha) * (c - c_i[i])
            y = x
            for b in range(f.K[i]):
                ahead = -Delta_i if perturb_towards == "predicted" else Delta_i
                delta = (x + b * s * ahead) - y
                if perturbation == "scalars":
                    e, at = np.zeros_like(x), 0
                    total = sum(abs(delta[m]) for m in f.first)
                    for j, n in enumerate(f.sizes):
                        e[at : at + n] = sign * rho * delta[f.first[j]] / (total + 1e-7)
                        at += n
                elif perturbation == "sum_of_norms":
                    ends = np.cumsum(f.sizes)
                    total = sum(norm(delta[b - n : b]) for n, b in zip(f.sizes, ends, strict=True))
                    e = sign * rho * delta / total if delta.any() else 0.0
                else:
                    e = sign * rho * delta / norm(delta) if delta.any() else 0.0
                v = alpha * f.gradient(r, i, b, y + e) + (1 - alpha) * Delta_i
                y = f.step(r, y, v)
            g_i = (x - y) / ((f.nominal if nominal_steps else f.K[i]) * eta)
            if Delta.any():
                alignments.append(g_i @ Delta / (norm(g_i) * norm(Delta)))
            if control_variates:
                c_i_new[i] = c_i[i] - c + g_i
            D = D + (y - x) / len(S)
        if adaptive and Delta.any():
            alignment = np.mean(alignments)
            target = min(max(alignment if raw_cosine else 1 - alignment, alpha_min), alpha_max)
            alpha = (1 - ema) * alpha + ema * target
        elif adaptive and adapt_at_zero:
            alpha = (1 - ema) * alpha + ema * alpha_min
        mean_K = f.nominal if nominal_steps else np.mean([f.K[i] for i in S])
        x, Delta = x + server_lr * D, -momentum_factor * D / (mean_K * eta)
        c, c_i = c + (c_i_new - c_i).sum(axis=0) / f.N, c_i_new
        server = {"Delta": Delta, "alpha": alpha} | ({"c": c} if control_variates else {})
        yield Outcome(x, server, {"c_i": c_i} if control_variates else {})


def fedwmsam(f: Federation, **options: Any) -> Iterator[Outcome]:
    """The paper's method: the released code without what it does otherwise."""
    return fedwmsam_released(f, **PAPER | options)


def fedprox(f: Federation, *, mu: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    x = f.x0
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y) + mu * (y - x))
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        yield Outcome(x, {}, {})


def fedinit(
    f: Federation, *, beta: float, update_from: str = "server", server_lr: float = 1.0
) -> Iterator[Outcome]:
    x, last, seen = f.x0, np.zeros((f.N, f.x0.size)), np.zeros((f.N, 1))
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            first = x + beta * (x - last[i]) if seen[i] else x
            y = first
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y))
            D = D + (y - (first if update_from == "client" else x)) / len(S)
            last[i], seen[i] = y, 1
        x = x + server_lr * D
        yield Outcome(x, {}, {"y_last": last.copy(), "seen": seen.copy()})


def fedasam(f: Federation, *, rho: float, eta: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    """T = diag(|y| + eta); e = rho T^2 g / ||T g||."""
    x = f.x0
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                g, T = f.gradient(r, i, k, y), np.diag(np.abs(y) + eta)
                e = rho * T @ T @ g / norm(T @ g)
                y = f.step(r, y, f.gradient(r, i, k, y + e))
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        yield Outcome(x, {}, {})


def mofedsam(
    f: Federation, *, alpha: float, rho: float, server_lr: float = 1.0
) -> Iterator[Outcome]:
    """d = alpha g(y + e) + (1 - alpha) Delta, and e from the unmixed gradient."""
    x, Delta = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                e = rho * g / norm(g)
                y = f.step(r, y, alpha * f.gradient(r, i, k, y + e) + (1 - alpha) * Delta)
            D = D + (y - x) / len(S)
        mean_K = np.mean([f.K[i] for i in S])
        x, Delta = x + server_lr * D, -D / (mean_K * f.eta[r])
        yield Outcome(x, {"Delta": Delta}, {})


def fedwsam(
    f: Federation,
    *,
    alpha: float,
    rho: float,
    gamma: float,
    decoupled: bool = True,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """L_WSAM = (1 - 2 gamma) / (1 - gamma) L + gamma / (1 - gamma) L_SAM; decoupled, the part with L_SAM - L
    is added to what FedCM does.
    """
    x, Delta = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                g_sam = f.gradient(r, i, k, y + rho * g / norm(g))
                if decoupled:
                    d = alpha * g + (1 - alpha) * Delta + gamma / (1 - gamma) * (g_sam - g)
                else:
                    g_wsam = (1 - 2 * gamma) / (1 - gamma) * g + gamma / (1 - gamma) * g_sam
                    d = alpha * g_wsam + (1 - alpha) * Delta
                y = f.step(r, y, d)
            D = D + (y - x) / len(S)
        mean_K = np.mean([f.K[i] for i in S])
        x, Delta = x + server_lr * D, -D / (mean_K * f.eta[r])
        yield Outcome(x, {"Delta": Delta}, {})


def fedgamma(f: Federation, *, rho: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    """d = g(y + e) + c - c_i, and e from the local gradient alone."""
    x, c, c_i = f.x0, np.zeros_like(f.x0), np.zeros((f.N, f.x0.size))
    for r, S in enumerate(f.cohorts):
        D, c_i_new = np.zeros_like(x), c_i.copy()
        for i in S:
            y = x
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                e = rho * g / norm(g)
                y = f.step(r, y, f.gradient(r, i, k, y + e) + c - c_i[i])
            c_i_new[i] = c_i[i] - c - (y - x) / (f.K[i] * f.eta[r])
            D = D + (y - x) / len(S)
        x, c, c_i = x + server_lr * D, c + (c_i_new - c_i).sum(axis=0) / f.N, c_i_new
        yield Outcome(x, {"c": c}, {"c_i": c_i})


def feddyn(f: Federation, *, lam: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    """h_i is the sum of client i's updates; the server adds their mean over all N to the mean iterate."""
    x, h_i = f.x0, np.zeros((f.N, f.x0.size))
    for r, S in enumerate(f.cohorts):
        ends, h_i = [], h_i.copy()
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y) + lam * (y - x) + lam * h_i[i])
            h_i[i] = h_i[i] + (y - x)
            ends.append(y)
        h = h_i.sum(axis=0) / f.N
        x = x + server_lr * (np.mean(ends, axis=0) - x) + h
        yield Outcome(x, {"h": h}, {"h_i": h_i})


def fedspeed(f: Federation, *, lam: float, rho: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    x, h_i = f.x0, np.zeros((f.N, f.x0.size))
    for r, S in enumerate(f.cohorts):
        ends, h_i = [], h_i.copy()
        for i in S:
            y = x
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                e = rho * g / norm(g)
                y = f.step(r, y, f.gradient(r, i, k, y + e) + lam * (y - x) + lam * h_i[i])
            h_i[i] = h_i[i] + (y - x)
            ends.append(y)
        h = h_i.sum(axis=0) / f.N
        x = x + server_lr * (np.mean(ends, axis=0) - x) + h
        yield Outcome(x, {"h": h}, {"h_i": h_i})


def fedgloss(
    f: Federation, *, lam: float, rho: float, rho_local: float, server_lr: float = 1.0
) -> Iterator[Outcome]:
    """In the paper's symbols: beta = 1 / lam, dual variables sigma and sigma_i, pseudo-gradient G."""
    x, beta = f.x0, 1 / lam
    G, sigma, sigma_i = np.zeros_like(x), np.zeros_like(x), np.zeros((f.N, x.size))
    for r, S in enumerate(f.cohorts):
        start = x + rho * G / norm(G) if G.any() else x
        ends, sigma_i = [], sigma_i.copy()
        for i in S:
            y = start
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                if rho_local:
                    g = f.gradient(r, i, k, y + rho_local * g / norm(g))
                y = f.step(r, y, g - sigma_i[i] + (y - start) / beta)
            sigma_i[i] = sigma_i[i] - (y - start) / beta
            sigma = sigma - (y - start) / (beta * f.N)
            ends.append(y)
        G = start - np.mean(ends, axis=0)
        x = x - server_lr * G - beta * sigma
        yield Outcome(x, {"h": -beta * sigma, "D": -G}, {"h_i": -beta * sigma_i})


def fedsmoo(f: Federation, *, lam: float, rho: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    """mu_i is updated in every local step; s has the norm rho."""
    x, s, h_i = f.x0, np.zeros_like(f.x0), np.zeros((f.N, f.x0.size))
    mu_i = np.zeros_like(h_i)
    for r, S in enumerate(f.cohorts):
        ends, h_i, mu_i = [], h_i.copy(), mu_i.copy()
        for i in S:
            y = x
            for k in range(f.K[i]):
                q = f.gradient(r, i, k, y) - mu_i[i] - s
                e = rho * q / norm(q)
                y = f.step(r, y, f.gradient(r, i, k, y + e) + lam * (y - x) + lam * h_i[i])
                mu_i[i] = mu_i[i] + e - s
            h_i[i] = h_i[i] + (y - x)
            ends.append(y)
        h = h_i.sum(axis=0) / f.N
        x = x + server_lr * (np.mean(ends, axis=0) - x) + h
        mu = np.mean([mu_i[i] for i in S], axis=0)
        s = rho * mu / norm(mu)
        yield Outcome(x, {"h": h, "s": s}, {"h_i": h_i, "mu_i": mu_i})


class Path:
    """The global models so far, x_0 to x_r, and who saw which: all that FedLESAM's perturbation needs."""

    def __init__(self, f: Federation, rho: float, estimate: str):
        self.f, self.rho, self.estimate = f, rho, estimate
        self.models = [f.x0]

    def e(self, r: int, i: int) -> Array:
        """Perturbation of client i in round r: rho (x_old - x_r) / ||x_old - x_r||, 0 without an x_old."""
        x = self.models[r]
        active = [q for q in range(r) if i in self.f.cohorts[q]]
        old = {"last_update": r - 1, "last_seen": active[-1] if active else -1}[self.estimate]
        if old < 0:
            return np.zeros_like(x)
        back = self.models[old] - x
        return self.rho * back / norm(back)

    def server(self) -> dict[str, Array]:
        update = self.models[-1] - self.models[-2]
        return {"u": update} if self.estimate == "last_update" else {}

    def memories(self, r: int) -> dict[str, Array]:
        """After round r."""
        if self.estimate == "last_update":
            return {}
        x_old, seen = np.zeros((self.f.N, self.f.x0.size)), np.zeros((self.f.N, 1))
        for q in range(r + 1):
            for i in self.f.cohorts[q]:
                x_old[i], seen[i] = self.models[q], 1.0
        return {"w_seen": x_old, "seen": seen}


def fedlesam(
    f: Federation, *, rho: float, estimate: str = "last_seen", server_lr: float = 1.0
) -> Iterator[Outcome]:
    x, path = f.x0, Path(f, rho, estimate)
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y, e = x, path.e(r, i)
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y + e))
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        path.models.append(x)
        yield Outcome(x, path.server(), path.memories(r))


def fedlesam_s(
    f: Federation,
    *,
    rho: float,
    estimate: str = "last_seen",
    correction: float = 1.0,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    x, c, c_i = f.x0, np.zeros_like(f.x0), np.zeros((f.N, f.x0.size))
    path = Path(f, rho, estimate)
    for r, S in enumerate(f.cohorts):
        D, c_i_new = np.zeros_like(x), c_i.copy()
        for i in S:
            y, e = x, path.e(r, i)
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y + e) + correction * (c - c_i[i]))
            c_i_new[i] = c_i[i] - c - (y - x) / (f.K[i] * f.eta[r])
            D = D + (y - x) / len(S)
        x, c, c_i = x + server_lr * D, c + (c_i_new - c_i).sum(axis=0) / f.N, c_i_new
        path.models.append(x)
        yield Outcome(x, {"c": c} | path.server(), {"c_i": c_i} | path.memories(r))


def fedlesam_d(
    f: Federation, *, lam: float, rho: float, estimate: str = "last_seen", server_lr: float = 1.0
) -> Iterator[Outcome]:
    x, h_i, path = f.x0, np.zeros((f.N, f.x0.size)), Path(f, rho, estimate)
    for r, S in enumerate(f.cohorts):
        ends, h_i = [], h_i.copy()
        for i in S:
            y, e = x, path.e(r, i)
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y + e) + lam * (y - x) + lam * h_i[i])
            h_i[i] = h_i[i] + (y - x)
            ends.append(y)
        h = h_i.sum(axis=0) / f.N
        x = x + server_lr * (np.mean(ends, axis=0) - x) + h
        path.models.append(x)
        yield Outcome(x, {"h": h} | path.server(), {"h_i": h_i} | path.memories(r))


def fedacg(
    f: Federation, *, gamma: float, beta: float, server_lr: float = 1.0
) -> Iterator[Outcome]:
    """Clients start at z = x + gamma m and are held near it; x moves to the mean of their last iterates."""
    x, m = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        z, ends = x + gamma * m, []
        for i in S:
            y = z
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y) + beta * (y - z))
            ends.append(y)
        m = gamma * m + np.mean(ends, axis=0) - z
        x = x + server_lr * (np.mean(ends, axis=0) - x)
        yield Outcome(x, {"m": m}, {})


def fednesterov(f: Federation, *, gamma: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    x, m = f.x0, np.zeros_like(f.x0)
    for r, S in enumerate(f.cohorts):
        z, D = x + gamma * m, np.zeros_like(x)
        for i in S:
            y = z
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y))
            D = D + (y - z) / len(S)
        m = gamma * m + D
        x = x + server_lr * m
        yield Outcome(x, {"m": m}, {})


def fedadam(
    f: Federation,
    *,
    server_lr: float,
    beta1: float,
    beta2: float = 0.99,
    tau: float,
    rule: str = "adam",
) -> Iterator[Outcome]:
    x, m, v = f.x0, np.zeros_like(f.x0), np.full_like(f.x0, tau**2)
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                y = f.step(r, y, f.gradient(r, i, k, y))
            D = D + (y - x) / len(S)
        m = beta1 * m + (1 - beta1) * D
        if rule == "adam":
            v = beta2 * v + (1 - beta2) * D**2
        elif rule == "yogi":
            v = v - (1 - beta2) * D**2 * np.sign(v - D**2)
        else:
            v = v + D**2
        x = x + server_lr * m / (np.sqrt(v) + tau)
        yield Outcome(x, {"m": m, "v": v}, {})


def fedyogi(f: Federation, **options: float) -> Iterator[Outcome]:
    return fedadam(f, **options, rule="yogi")


def fedadagrad(f: Federation, **options: float) -> Iterator[Outcome]:
    return fedadam(f, **options, rule="adagrad")


def fedswa(f: Federation, *, rho: float, server_lr: float) -> Iterator[Outcome]:
    """Step k has the learning rate eta ((1 - k/K_i) + k/K_i rho); the clip sees it, weight decay not."""
    x = f.x0
    for r, S in enumerate(f.cohorts):
        ends = []
        for i in S:
            y, K = x, f.K[i]
            for k in range(K):
                y = f.step(r, y, (1 - k / K + k / K * rho) * f.gradient(r, i, k, y))
            ends.append(y)
        x = x + server_lr * (np.mean(ends, axis=0) - x)
        yield Outcome(x, {}, {})


def fedmoswa(f: Federation, *, rho: float, server_lr: float, gamma: float) -> Iterator[Outcome]:
    """The momentum m takes c's place in SCAFFOLD, as a moving average of the cohort's new c_i."""
    x, m, c_i = f.x0, np.zeros_like(f.x0), np.zeros((f.N, f.x0.size))
    for r, S in enumerate(f.cohorts):
        ends, gaps, c_i = [], [], c_i.copy()
        for i in S:
            y, K = x, f.K[i]
            falling = [1 - k / K + k / K * rho for k in range(K)]
            for k in range(K):
                y = f.step(r, y, falling[k] * (f.gradient(r, i, k, y) - c_i[i] + m))
            c_i[i] = c_i[i] - m + (x - y) / sum(f.eta[r] * factor for factor in falling)
            gaps.append(c_i[i] - m)
            ends.append(y)
        x = x + server_lr * (np.mean(ends, axis=0) - x)
        m = m + gamma * np.mean(gaps, axis=0)
        yield Outcome(x, {"m": m}, {"c_i": c_i})


def igfl(f: Federation, *, gamma: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    x, c, c_i = f.x0, np.zeros_like(f.x0), np.zeros((f.N, f.x0.size))
    for r, S in enumerate(f.cohorts):
        D, c_i = np.zeros_like(x), c_i.copy()
        for i in S:
            y = x
            for k in range(f.K[i]):
                g = f.gradient(r, i, k, y)
                y = f.step(r, y, (1 - gamma) * g + gamma * (c - c_i[i] / f.N + g / f.N))
            c_i[i] = (x - y) / (f.K[i] * f.eta[r])
            D = D + (y - x) / len(S)
        x, c = x + server_lr * D, np.mean([c_i[i] for i in S], axis=0)
        yield Outcome(x, {"c": c}, {"c_i": c_i})


def local_adamw(
    f: Federation, *, beta1: float, beta2: float, epsilon: float, server_lr: float = 1.0
) -> Iterator[Outcome]:
    """Clients clip the gradient and run AdamW from new; f.wd is its decoupled weight decay."""
    x = f.x0
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y, m, v = x, np.zeros_like(x), np.zeros_like(x)
            for k in range(f.K[i]):
                g = f.clip(f.gradient(r, i, k, y))
                m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
                m_hat, v_hat = m / (1 - beta1 ** (k + 1)), v / (1 - beta2 ** (k + 1))
                y = f.move(r, y, m_hat / (np.sqrt(v_hat) + epsilon))
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        yield Outcome(x, {}, {})


def fedadamw(
    f: Federation,
    *,
    gamma: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """Every step also moves by gamma eta / K times the last mean update over its learning rate."""
    x, M, v_mean, t = f.x0, np.zeros_like(f.x0), np.zeros_like(f.x0), 0.0
    for r, S in enumerate(f.cohorts):
        ends, seconds = [], []
        for i in S:
            y, m, v = x, np.zeros_like(x), v_mean
            for k in range(1, f.K[i] + 1):
                g = f.clip(f.gradient(r, i, k - 1, y))
                m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
                m_hat, v_hat = m / (1 - beta1**k), v / (1 - beta2 ** (t + k))
                y = f.move(r, y, m_hat / (np.sqrt(v_hat) + epsilon)) + gamma * f.eta[r] * M
            ends.append(y)
            seconds.append(v)
        mean_K, D = np.mean([f.K[i] for i in S]), np.mean(ends, axis=0) - x
        x, M = x + server_lr * D, D / f.eta[r] / mean_K
        v_mean, t = np.mean(seconds, axis=0), t + mean_K
        yield Outcome(x, {"Delta": -M, "v": v_mean, "t": t}, {})


def fedlada(
    f: Federation,
    *,
    alpha: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """AMSGrad without bias correction, whose v_hat comes from the server and goes back to it."""
    x, g_a, v_server = f.x0, np.zeros_like(f.x0), np.full_like(f.x0, epsilon**2)
    for r, S in enumerate(f.cohorts):
        ends, seconds = [], []
        for i in S:
            y, m, v, v_hat = x, np.zeros_like(x), v_server, v_server
            for k in range(f.K[i]):
                g = f.clip(f.gradient(r, i, k, y))
                m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
                v_hat = np.maximum(v_hat, v)
                y = f.move(r, y, alpha * m / np.sqrt(v_hat) + (1 - alpha) * g_a)
            ends.append(y)
            seconds.append(v_hat)
        mean_K, x_mean = np.mean([f.K[i] for i in S]), np.mean(ends, axis=0)
        g_a, v_server = (x - x_mean) / (mean_K * f.eta[r]), np.mean(seconds, axis=0)
        x = x + server_lr * (x_mean - x)
        yield Outcome(x, {"Delta": g_a, "v": v_server}, {})


def fedmuon(
    f: Federation,
    *,
    gamma: float,
    beta: float,
    momentum: str = "heavy_ball",
    tall: bool = False,
    matrix_lr: float = 1.0,
    beta1: float,
    beta2: float,
    epsilon: float,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """Newton and Schulz's polynomials, taken five times of each singular value, which is what they are."""
    x, drift, M_mean = f.x0, np.zeros_like(f.x0), np.zeros_like(f.x0)
    matrices = [place.reshape(len(place), -1) for place in f.places if place.ndim > 1]
    vectors = [place for place in f.places if place.ndim == 1]
    for r, S in enumerate(f.cohorts):
        ends, momenta = [], []
        for i in S:
            y, M, m, v = x, M_mean.copy(), np.zeros_like(x), np.zeros_like(x)
            for k in range(f.K[i]):
                g, step = f.clip(f.gradient(r, i, k, y)), np.zeros_like(x)
                for at in matrices:
                    if momentum == "nesterov":
                        M[at] += (1 - beta) * (g[at] - M[at])
                        U, values, V = np.linalg.svd(
                            g[at] + beta * (M[at] - g[at]), full_matrices=False
                        )
                    else:
                        M[at] = beta * M[at] + g[at]
                        U, values, V = np.linalg.svd(M[at], full_matrices=False)
                    s = values / norm(values) if values.any() else values
                    for _ in range(5):
                        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
                    step[at] = matrix_lr * (U * s) @ V
                    if tall and at.shape[0] > at.shape[1]:
                        step[at] *= np.sqrt(at.shape[0] / at.shape[1])
                for at in vectors:
                    m[at] = beta1 * m[at] + (1 - beta1) * g[at]
                    v[at] = beta2 * v[at] + (1 - beta2) * g[at] ** 2
                    v_hat = v[at] / (1 - beta2 ** (k + 1))
                    step[at] = m[at] / (1 - beta1 ** (k + 1)) / (np.sqrt(v_hat) + epsilon)
                y = f.move(r, y, (1 - gamma) * step + gamma * drift)
            ends.append(y)
            momenta.append(M)
        mean_K, D = np.mean([f.K[i] for i in S]), np.mean(ends, axis=0) - x
        x, drift, M_mean = x + server_lr * D, -D / (mean_K * f.eta[r]), np.mean(momenta, axis=0)
        yield Outcome(x, {"Delta": drift, "M": M_mean}, {})


def moon(f: Federation, *, mu: float, tau: float, server_lr: float = 1.0) -> Iterator[Outcome]:
    """The contrastive term by hand: with s = 1 / (1 + exp((near - far) / tau)), its gradient in z is
    s / tau (d far / dz - d near / dz), and d cos(z, a) / dz = (a / |a| - cos(z, a) z / |z|) / |z|.
    """
    x, x_prev, seen = f.x0, np.zeros((f.N, f.x0.size)), np.zeros((f.N, 1))
    for r, S in enumerate(f.cohorts):
        D, x_prev, seen = np.zeros_like(x), x_prev.copy(), seen.copy()
        for i in S:
            y = x
            for k in range(f.K[i]):
                d = f.gradient(r, i, k, y)
                if seen[i]:
                    z, z_glob, z_prev = (v - f.b[r, i, k] for v in (y, x, x_prev[i]))
                    near = z @ z_glob / (norm(z) * norm(z_glob))
                    far = z @ z_prev / (norm(z) * norm(z_prev))
                    s = 1 / (1 + np.exp((near - far) / tau))
                    d_near = (z_glob / norm(z_glob) - near * z / norm(z)) / norm(z)
                    d_far = (z_prev / norm(z_prev) - far * z / norm(z)) / norm(z)
                    d = d + mu * s / tau * (d_far - d_near)
                y = f.step(r, y, d)
            x_prev[i], seen[i] = y, 1.0
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        yield Outcome(x, {}, {"w_prev": x_prev, "seen": seen})


def softmax(v: Array) -> Array:
    powers = np.exp(v - v.max())
    return powers / powers.sum()


def fedgmt(
    f: Federation,
    *,
    lam: float,
    alpha: float,
    gamma: float,
    tau: float,
    duals: str = "all",
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """In the paper's symbols: dual variables u_i, beta = 1 / lam. The divergence by hand: its gradient in z
    is (softmax(z / tau) - softmax(z_e / tau)) / tau.
    """
    x, e, u, beta = f.x0, f.x0, np.zeros((f.N, f.x0.size)), 1 / lam
    for r, S in enumerate(f.cohorts):
        u, ends = u.copy(), []
        for i in S:
            y = x
            for k in range(f.K[i]):
                z, z_e = y - f.b[r, i, k], e - f.b[r, i, k]
                pull = gamma * tau**2 * (softmax(z / tau) - softmax(z_e / tau)) / tau
                y = f.step(r, y, f.gradient(r, i, k, y) + pull - u[i])
            u[i] = u[i] - (y - x) / beta
            ends.append(y)
        counted = [u[i] for i in S] if duals == "active" else u
        x = x + server_lr * (np.mean(ends, axis=0) - x) - beta * np.mean(counted, axis=0)
        e = alpha * e + (1 - alpha) * x
        h = {"h": -beta * u.mean(axis=0)} if duals == "all" else {}
        yield Outcome(x, {"e": e} | h, {"h_i": -beta * u})


def fedsol(
    f: Federation,
    *,
    rho: float,
    strength: str = "adaptive",
    temperature: float = 3.0,
    server_lr: float = 1.0,
) -> Iterator[Outcome]:
    """The gradient in z of KL(p || softmax(z / T)) is (softmax(z / T) - p) / T, and dz / dy is 1."""
    x = f.x0
    for r, S in enumerate(f.cohorts):
        D = np.zeros_like(x)
        for i in S:
            y = x
            for k in range(f.K[i]):
                q, p = (softmax((v - f.b[r, i, k]) / temperature) for v in (y, x))
                g_p, e = (q - p) / temperature, np.zeros_like(x)
                if k > 0:
                    e = rho * g_p / norm(g_p)
                    for place in f.places if strength == "adaptive" else []:
                        away = np.abs(y - x)[place]
                        e[place] *= away / np.sqrt((away**2).sum(axis=0, keepdims=True))
                y = f.step(r, y, f.gradient(r, i, k, y + e))
            D = D + (y - x) / len(S)
        x = x + server_lr * D
        yield Outcome(x, {}, {})


METHODS = {
    "asyncsam": asyncsam,
    "centralised": centralised,
    "ditto": ditto,
    "fedacg": fedacg,
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedadamw": fedadamw,
    "fedasam": fedasam,
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "fedcm": fedcm,
    "feddyn": feddyn,
    "fedexp": fedexp,
    "fedgamma": fedgamma,
    "fedgf": fedgf,
    "fedgloss": fedgloss,
    "fedgmt": fedgmt,
    "fedinit": fedinit,
    "fedlada": fedlada,
    "fedlesam": fedlesam,
    "fedlesam_d": fedlesam_d,
    "fedlesam_s": fedlesam_s,
    "fedmoswa": fedmoswa,
    "fedmuon": fedmuon,
    "fednesterov": fednesterov,
    "fednova": fednova,
    "fednsam": fednsam,
    "fednsam_momentum": fednsam_momentum,
    "fedper": fedper,
    "fedprox": fedprox,
    "fedrep": fedrep,
    "fedsam": fedsam,
    "fedsmoo": fedsmoo,
    "fedsol": fedsol,
    "fedspeed": fedspeed,
    "fedswa": fedswa,
    "fedwmsam": fedwmsam,
    "fedwmsam_released": fedwmsam_released,
    "fedwsam": fedwsam,
    "fedyogi": fedyogi,
    "igfl": igfl,
    "local": local,
    "local_adamw": local_adamw,
    "mofedsam": mofedsam,
    "moon": moon,
    "scaffold": scaffold,
}
