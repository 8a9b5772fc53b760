"""Cost of flatness in gradients: the largest eigenvalue and the SAM gaps of LeNet-5; and of rounds' metrics.

One process, no Ray; what is compared is processor time, of which others beside take none.
"""

import time

import torch

from benchmarks.findings import Finding, median
from benchmarks.workloads import Workload
from rayfl.federation.movement import Movement
from rayfl.federation.probe import PooledObjective
from rayfl.federation.session import Session
from rayfl.flatness import draws, gaps, spectrum
from rayfl.flatness.question import Question
from rayfl.launch import in_this_process
from rayfl.prepare import prepare

SAMPLES = 2048
MOST_GRADIENTS = 40.0
RHOS = (0.01, 0.05, 0.1)
STEPS = 40  # of Lanczos, at most
MOST_OF_A_ROUND = 1.0  # percent


def measure(workload: Workload, repeats: int) -> list[Finding]:
    """Train a few rounds, then measure around the w that they lead to, `repeats` times."""
    config = workload.experiment({"name": "fednsam"}, rounds=3)
    prepared = prepare(config)
    with in_this_process(prepared) as place:
        with place.session(None) as session:
            assert isinstance(session, Session)
            began, rounds = time.process_time(), list(session.run())
            round_s = (time.process_time() - began) / config.federation.rounds
            state = session.server.snapshot()
        with place.pool() as pool:
            measurer = prepared.measurer(Question(samples=SAMPLES))
            objective = measurer.objective(pool, state, "train")
            turns = [_turn(objective) for _ in range(repeats)]
    assert rounds
    w = objective.w
    gradients, tops, rises, steps = zip(*turns, strict=True)
    found = f"lambda 1 of LeNet-5, {SAMPLES:,} images, {max(steps)} products, over a gradient"
    in_gradients = [a / b for a, b in zip(tops, gradients, strict=True)]
    of_gaps = [a / b for a, b in zip(rises, gradients, strict=True)]
    shares = [100 * _of_a_round(w) / round_s for _ in range(2 * repeats + 1)]
    return [
        median("curvature", "gradient of the same", "s", gradients),
        median("curvature", found, "x", in_gradients, MOST_GRADIENTS),
        median(
            "curvature", "SAM gaps at three rhos, over a gradient", "x", of_gaps, MOST_GRADIENTS
        ),
        median("curvature", "a round's update/*, of its time", "%", shares, MOST_OF_A_ROUND),
    ]


def _turn(objective: PooledObjective) -> tuple[float, float, float, int]:
    """Processor time of a gradient, of the eigenvalue and of the gaps; and the products that it took."""
    began = time.process_time()
    _, gradient = objective.gradient()
    gradient_s = time.process_time() - began
    began = time.process_time()
    start, tolerance = draws.lanczos_start(objective.w), spectrum.TOLERANCE
    found = spectrum.lanczos(objective.products, start, STEPS, 1, tolerance)
    top_s = time.process_time() - began
    began = time.process_time()
    _, gradient = objective.gradient()
    gaps.sam_gaps(objective, gradient, RHOS, gaps.EUCLIDEAN)
    return gradient_s, top_s, time.process_time() - began, len(found.eigenvalues)


def _of_a_round(w: torch.Tensor) -> float:
    movement = Movement(torch.randn_like(w))
    delta, momentum = torch.randn_like(w), torch.randn_like(w)
    began = time.process_time()
    movement.metrics(delta, momentum, 1.0)
    return time.process_time() - began
