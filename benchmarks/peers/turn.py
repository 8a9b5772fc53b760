"""One turn of another framework in its own processes.

    python -m benchmarks.peers.turn flower WORKLOAD ROUNDS OUT.npz [CIFAR10]

It writes what `Turn` holds. If that fails, a line of standard error says why.
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.bare import tensors
from benchmarks.workloads import workloads
from rayfl.prepare import prepare
from rayfl.prepared import Prepared

FAILED = "the framework failed: "


@dataclass(frozen=True)
class Turn:
    """Result of a framework's turn."""

    ends: np.ndarray
    """End of each round, in seconds since an arbitrary moment."""
    first: np.ndarray
    """w `[P]` after the first round."""
    last: np.ndarray
    """w `[P]` after the last round."""


@dataclass(frozen=True)
class Task:
    """Data, partition and model that each process of the framework loads once."""

    prepared: Prepared
    x: torch.Tensor
    y: torch.Tensor

    def cohorts(self) -> Iterator[list[int]]:
        """Return the clients of each round, the same as in rayfl."""
        f = self.prepared.federation
        for round in range(1, f.rounds + 1):
            yield f.cohort(round)


def load(workload: str, rounds: int, cifar10: str) -> Task:
    """Load data, partition and model, in a process of one thread."""
    torch.set_num_threads(1)
    known = workloads(Path(cifar10) if cifar10 else None)
    prepared = prepare(known[workload].experiment({"name": "fedavg"}, rounds=rounds))
    prepared.model.to(memory_format=torch.contiguous_format)
    return Task(prepared, *tensors(prepared.data))


def main(framework: str, workload: str, rounds: str, out: str, cifar10: str = "") -> None:
    run = importlib.import_module(f"benchmarks.peers.{framework}").run
    turn: Turn | None = run(workload, int(rounds), cifar10)
    if turn is not None:
        np.savez(out, **asdict(turn))


def _cause(error: BaseException) -> str:
    """Return the root exception in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        print(FAILED + _cause(error), file=sys.stderr, flush=True)
        raise
