"""Seconds per round of rayfl against a bare PyTorch loop that does the same steps, in the same run.

    python benchmarks/rounds.py                  every workload
    python benchmarks/rounds.py lenet5 --cifar10 DIR --json out.json

The bare loop is what one would write without a framework: two processes of one thread, tensors preloaded
as float32, `torch.optim.SGD`, no evaluation, no metrics. Both sides train the same clients on the same
minibatches from the same start, which is checked (after one round they are at the same parameters, to
rounding) before anything is timed. The sides take turns, so that a machine that slows down slows both.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rayfl import seeds
from rayfl.config import Experiment, load_config
from rayfl.experiment import Prepared, prepare
from rayfl.runtime import cluster
from rayfl.runtime.placement import Demand, place
from rayfl.training.batches import plan, steps_per_round
from rayfl.training.flat import Layout

PROCESSES = 2
WARM_UP = 3


@dataclass(frozen=True)
class Workload:
    title: str
    rounds: int
    config: dict[str, Any]


@dataclass(frozen=True)
class Timing:
    seconds: list[float]
    """Of each round after the warm-up."""
    pss: float
    """Bytes of the processes that train, shared pages divided among their users."""
    w: torch.Tensor


def workloads(cifar10: Path | None, scratch: Path) -> dict[str, Workload]:
    """The workloads by name. Without CIFAR-10, LeNet-5 gets random images of the same shape."""
    if cifar10 is not None:
        images = {"name": "parquet", "path": str(cifar10)}
    else:
        images = _random("images", scratch, 50_000, (32, 32, 3), np.uint8)
    thousand = {"clients": 1000, "cohort_size": 100, "local_steps": 5, "batch_size": 10, "lr": 0.05}
    return {
        "lenet5": Workload(
            "LeNet-5, CIFAR-10, 10 of 100 clients x 10 steps x 50",
            10,
            {
                "data": images,
                "model": {"name": "lenet5"},
                "federation": {
                    "clients": 100,
                    "cohort_size": 10,
                    "local_steps": 10,
                    "batch_size": 50,
                    "lr": 0.05,
                },
            },
        ),
        "mlp": Workload(
            "MLP 784-200-200-10, 100 of 1,000 clients x 5 steps x 10",
            100,
            {
                "data": _random("features784", scratch, 50_000, (784,), np.float32),
                "model": {"name": "mlp", "hidden": [200, 200]},
                "federation": thousand,
            },
        ),
        "mlp_small": Workload(
            "MLP 64-64-10, 100 of 1,000 clients x 5 steps x 10",
            200,
            {
                "data": _random("features64", scratch, 50_000, (64,), np.float32),
                "model": {"name": "mlp", "hidden": [64]},
                "federation": thousand,
            },
        ),
    }


def experiment(workload: Workload) -> Experiment:
    """The workload as FedAvg with plain SGD, evaluated once at the end."""
    fixed = {
        "rounds": workload.rounds + WARM_UP,
        "eval_every": workload.rounds + WARM_UP,
    }
    return load_config(
        {
            **workload.config,
            "partition": {"name": "dirichlet", "alpha": 0.1},
            "algorithm": {"name": "fedavg"},
            "federation": workload.config["federation"] | fixed,
            "tracking": {"enabled": False},
            "resources": {"num_actors": PROCESSES},
        }
    )


def run_rayfl(prepared: Prepared) -> Timing:
    """All rounds on Ray actors."""
    demand = Demand(num_actors=PROCESSES, cpus_per_actor=1, gpus_per_actor=0)
    placement = place(demand, prepared.units_per_round)
    seconds, pss = [], 0.0
    with cluster.launched(prepared.job(), placement) as server:
        pids = [actor["pid"] for actor in server.describe()]
        for record in server.run():
            if "time/round_s" in record.metrics:
                seconds.append(record.metrics["time/round_s"])
                if len(seconds) == prepared.federation.rounds // 2:
                    pss = _pss(pids)  # once: looking stops the processes
        w = torch.tensor(server.parameters()[0])
    return Timing(seconds[WARM_UP:], pss, w)


def run_bare(prepared: Prepared) -> Timing:
    """All rounds in a bare loop of two processes."""
    layout = Layout(prepared.model)
    w, _ = layout.flatten(prepared.model)
    shared = w.clone().share_memory_()
    sums = torch.zeros(PROCESSES, len(w)).share_memory_()
    context = multiprocessing.get_context("fork")
    barrier, times = context.Barrier(PROCESSES), context.Queue()
    workers = [
        context.Process(target=_bare_worker, args=(i, prepared, shared, sums, barrier, times))
        for i in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    pids, pss, seconds = [worker.pid for worker in workers], 0.0, None
    while seconds is None:
        pss = max(pss, _pss(pids))
        try:
            seconds = times.get(timeout=2)
        except Exception:  # queue.Empty: not done yet
            assert all(worker.exitcode in (None, 0) for worker in workers), "the bare loop failed"
    for worker in workers:
        worker.join()
    return Timing(seconds[WARM_UP:], pss, shared.clone())


def _bare_worker(index: int, prepared: Prepared, shared, sums, barrier, times) -> None:
    torch.set_num_threads(1)
    f, s, data = prepared.federation, prepared.settings, prepared.data
    x = torch.from_numpy(data.x_train).float()
    x = (x / 255 if data.x_train.dtype == np.uint8 else x).sub_(torch.from_numpy(data.mean))
    x = x.div_(torch.from_numpy(data.std))
    x = x.permute(0, 3, 1, 2).contiguous() if x.dim() == 4 else x
    y = torch.from_numpy(data.y_train)
    model, layout = prepared.model.to(memory_format=torch.contiguous_format), Layout(prepared.model)
    loss = nn.CrossEntropyLoss()
    empty = torch.zeros(0)
    seconds = []
    for round in range(1, f.rounds + 1):
        barrier.wait()
        began = time.perf_counter()
        rng = seeds.generator(f.seed, "cohort", round)
        cohort = sorted(rng.choice(f.clients, f.cohort_size, replace=False).tolist())
        sums[index].zero_()
        for client in cohort[index::PROCESSES]:
            layout.load(model, shared, empty)
            optimizer = torch.optim.SGD(model.parameters(), lr=f.lrs[round - 1])
            samples = prepared.partition.client(client)
            steps = steps_per_round(len(samples), s.batch_size, s.local_epochs, s.local_steps)
            batches = plan(samples, s.batch_size, steps, s.seed, round, client, "none", 0)
            for indices, size in zip(batches.indices, batches.sizes, strict=True):
                chosen = torch.from_numpy(indices[:size])
                optimizer.zero_grad()
                loss(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
            sums[index] += layout.flatten(model)[0] - shared
        barrier.wait()
        if index == 0:
            shared += sums.sum(0) / f.cohort_size
        barrier.wait()
        seconds.append(time.perf_counter() - began)
    if index == 0:
        times.put(seconds)


def compare(workload: Workload, repeats: int) -> dict[str, Any]:
    """Both sides in turn, `repeats` times; the medians over all rounds."""
    prepared = prepare(experiment(workload))
    apart = _apart(prepared)
    assert apart < 1e-3, f"the two sides compute different things: {apart:.1%} apart"
    sides: dict[str, tuple[Callable[[Prepared], Timing], list[Timing]]] = {
        "bare": (run_bare, []),
        "rayfl": (run_rayfl, []),
    }
    for _ in range(repeats):
        for side, timings in sides.values():
            timings.append(side(prepared))
    bare, ours = sides["bare"][1], sides["rayfl"][1]
    ratios = [
        statistics.median(r.seconds) / statistics.median(b.seconds)
        for b, r in zip(bare, ours, strict=True)
    ]
    return {
        "workload": workload.title,
        "bare_s": statistics.median([s for t in bare for s in t.seconds]),
        "rayfl_s": statistics.median([s for t in ours for s in t.seconds]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "bare_pss_mb": max(t.pss for t in bare) / 1e6,
        "rayfl_pss_mb": max(t.pss for t in ours) / 1e6,
        "apart": apart,
    }


def _apart(prepared: Prepared) -> float:
    """How far one round of each side is apart, relative to how far it moved."""
    once = replace(prepared, federation=replace(prepared.federation, rounds=1))
    start, _ = Layout(prepared.model).flatten(prepared.model)
    bare, ours = run_bare(once).w, run_rayfl(once).w
    return float(torch.linalg.vector_norm(bare - ours) / torch.linalg.vector_norm(bare - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="lenet5, mlp, mlp_small; all of them by default")
    parser.add_argument("--cifar10", type=Path, help="directory with CIFAR-10 as parquet files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/rayfl-benchmarks"))
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    known = workloads(arguments.cifar10, arguments.scratch)
    with cluster.connected(None):
        rows = [compare(known[name], arguments.repeats) for name in arguments.names or known]
    table = Table(
        "workload", "bare s/round", "rayfl s/round", "ratio (min-max)", "PSS bare, rayfl MB"
    )
    for row in rows:
        table.add_row(
            row["workload"],
            f"{row['bare_s']:.4f}",
            f"{row['rayfl_s']:.4f}",
            f"{row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})",
            f"{row['bare_pss_mb']:.0f}, {row['rayfl_pss_mb']:.0f}",
        )
    Console(width=130).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def _random(name: str, scratch: Path, n: int, shape: tuple[int, ...], kind: Any) -> dict[str, Any]:
    """An npz of random samples with labels that depend on them."""
    path = scratch / f"{name}.npz"
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        x = (
            rng.integers(0, 256, (n, *shape))
            if kind is np.uint8
            else rng.standard_normal((n, *shape))
        )
        x = x.astype(kind)
        y = (x.reshape(n, -1)[:, :64].astype(np.float32) @ rng.standard_normal((64, 10))).argmax(1)
        test = n // 50
        np.savez(path, x_train=x, y_train=y, x_test=x[:test], y_test=y[:test])
    return {"name": "npz", "path": str(path)}


def _pss(pids: list[Any]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
