"""Benchmarks of time and memory.

    python -m benchmarks                            all of it (some 45 minutes on two cores)
    python -m benchmarks lenet5 mlp steps           some of it
    python -m benchmarks --cifar10 DIR --json out.json

The parts: lenet5, resnet18, mlp and mlp_small (rounds against a bare PyTorch loop), steps (methods against
FedAvg on the engine), curvature (eigenvalues and gaps in gradients), clients (a million against 100),
footprint (memory), startup, sweep (12 trials against their rounds), tracking (what MLflow costs a round),
peers (rounds of Flower and pfl-research, if installed).
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import clients, curvature, footprint, rounds, startup, steps, tracking
from benchmarks.findings import Finding, machine, show, write
from benchmarks.peers import compare
from benchmarks.workloads import workloads

Part = Callable[[], list[Finding]]


def parts(cifar10: Path | None, repeats: int) -> dict[str, Part]:
    """Benchmarks by name, in the order of the suite."""
    cifar10 = cifar10.absolute() if cifar10 else None
    known = workloads(cifar10)
    compared = [partial(steps.measure, name, known[name], 2 * repeats + 1) for name in steps.STEPS]
    return {
        **{name: partial(rounds.measure, name, work, repeats) for name, work in known.items()},
        "steps": lambda: [finding for compare in compared for finding in compare()],
        "curvature": partial(curvature.measure, known["lenet5"], repeats),
        "clients": partial(clients.measure, 5 * repeats),
        "footprint": partial(footprint.measure, known["resnet18"]),
        "startup": partial(startup.measure, 2 * repeats + 1),
        "sweep": _sweep,
        "tracking": partial(tracking.measure, known["lenet5"].config["data"], repeats),
        "peers": partial(compare.measure, cifar10, repeats),
    }


def _sweep() -> list[Finding]:
    # Here, for it imports what starts threads, and the bare loop is forked from this process.
    from benchmarks import sweep

    return sweep.measure()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--cifar10", type=Path, help="directory with CIFAR-10 as parquet files")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; 3 by default")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    known = parts(arguments.cifar10, arguments.repeats)
    if unknown := set(arguments.parts) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    findings: list[Finding] = []
    described = machine()
    Console(highlight=False, soft_wrap=True).print(described)
    for name in arguments.parts or known:
        found = known[name]()
        if found:
            show(found)
        findings += found
        if arguments.json:  # after each part: the next may take long
            write(arguments.json, findings, described)


if __name__ == "__main__":
    main()
