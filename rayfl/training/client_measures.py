"""Measures of one client: its loss F_i around the server's w and around its own last iterate y_i.

Shapes: P parameters, k eigenvectors.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rayfl import seeds
from rayfl.algorithms.vectors import cosine
from rayfl.flatness.draws import lanczos_start
from rayfl.flatness.gaps import sam_gaps
from rayfl.flatness.spectrum import TOLERANCE, lanczos
from rayfl.training.objective import SampleObjective
from rayfl.training.replay import Replay
from rayfl.training.units import ClientProbe, ClientProbeResult


def alignment(
    at_start: SampleObjective, replayed: Replay, probe: ClientProbe, gradient: Tensor, tops: Tensor
) -> ClientProbeResult:
    """Gaps and curvature of F_i at w and at y_i, and how F_i's directions lie to the pooled loss's.

    `at_start`: F_i around w; `gradient [P]` and top eigenvectors `tops [k, P]` are F's at w.
    """
    at_end = replace(at_start, w=replayed.end, buffers=replayed.buffers)
    k, metrics = len(tops), {}
    vectors: dict[str, Tensor] = {"end": replayed.end, "buffers": replayed.buffers}
    for where, objective, top in (("start", at_start, k), ("end", at_end, 1)):
        loss, own = objective.gradient()
        found = lanczos(objective.products, _first(own), probe.lanczos_steps, top, TOLERANCE)
        metrics |= {f"loss_{where}": loss, f"lambda1_{where}": float(found.eigenvalues[0])}
        for rho, rise in zip(probe.rhos, sam_gaps(objective, own, probe.rhos), strict=True):
            metrics[f"gap_{rho:g}_{where}"] = rise
        vectors[f"gradient_{where}"] = own
        if where == "start":
            metrics["cos_gradient"] = float(cosine(own, gradient))
            metrics["cos_top_eigenvector"] = abs(float(found.vectors[0] @ tops[0]))
            overlaps = found.vectors @ tops.T
            metrics["subspace_overlap"] = float(overlaps.square().sum()) / k
    if replayed.cosines:
        metrics["cos_perturbation"] = float(np.mean(replayed.cosines))
    return ClientProbeResult(metrics, {name: v.cpu().numpy() for name, v in vectors.items()})


def end_of(replayed: Replay) -> ClientProbeResult:
    """The client's last iterate `end [P]` and its `buffers [Q]`."""
    vectors = {"end": replayed.end, "buffers": replayed.buffers}
    return ClientProbeResult({}, {name: v.cpu().numpy() for name, v in vectors.items()})


def variance(
    at_start: SampleObjective, replayed: Replay, probe: ClientProbe, batch_size: int
) -> ClientProbeResult:
    """The three squares of FedWMSAM's Lemma 4 at w, with the method's own perturbation e.

    With minibatches B of the client: `noise` = E||g_B(w) - g||^2 (sigma^2), `shift` = ||g(w + e) - g||^2 (the
    part of (L rho)^2 that this e has), `perturbed` = E||g_B(w + e) - g||^2, with g = grad F_i(w).
    """
    client, e = probe.unit.clients[0], replayed.perturbation
    _, g = at_start.gradient()
    shift = 0.0 if e is None else float((at_start.gradient(e)[1] - g).double().square().sum())
    n, rng = len(at_start.samples), seeds.generator(0, "flatness", 1, client)
    noise, perturbed = [], []
    for _ in range(probe.minibatches):
        chosen = torch.from_numpy(rng.choice(n, min(batch_size, n), replace=False))
        part = replace(at_start, samples=at_start.samples[chosen.to(at_start.samples.device)])
        noise.append(float((part.gradient()[1] - g).double().square().sum()))
        if e is not None:
            perturbed.append(float((part.gradient(e)[1] - g).double().square().sum()))
    metrics = {"noise": float(np.mean(noise)), "shift": shift}
    metrics["perturbed"] = float(np.mean(perturbed)) if perturbed else metrics["noise"]
    metrics["perturbation"] = 0.0 if e is None else float(e.norm())
    return ClientProbeResult(metrics, {})


def _first(gradient: Tensor) -> Tensor:
    """The start of Lanczos: the gradient has much of the top eigenvectors; what is random has some of all."""
    random = lanczos_start(gradient)
    size = gradient.norm()
    return random / random.norm() + (gradient / size if size > 0 else 0)
