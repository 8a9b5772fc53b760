"""Bare PyTorch loop: FedAvg without a framework.

Two processes of one thread, tensors preloaded as float32, `torch.optim.SGD`, no evaluation, no metrics.
It trains the same clients on the same minibatches as rayfl.
"""

import multiprocessing
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.processes import pss
from rayfl.data.datasets import Dataset
from rayfl.prepared import Prepared
from rayfl.training.batches import batch_schedule, steps_per_round
from rayfl.training.flat import Layout

PROCESSES = 2


@dataclass(frozen=True)
class Timing:
    """Time and memory of one side."""

    seconds: list[float]
    """Time of each round."""
    pss: float
    """Bytes of the processes that train, shared pages divided among their users."""
    w: Tensor
    """Final parameters `[P]`."""


def run_bare(prepared: Prepared) -> Timing:
    """Run all rounds in two processes."""
    w, _ = Layout(prepared.model).flatten(prepared.model)
    shared = w.clone().share_memory_()
    sums = torch.zeros(PROCESSES, len(w)).share_memory_()
    context = multiprocessing.get_context("fork")
    barrier, times = context.Barrier(PROCESSES), context.Queue()
    workers = [
        context.Process(target=_work, args=(i, prepared, shared, sums, barrier, times))
        for i in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    pids = [worker.pid for worker in workers if worker.pid is not None]
    most, seconds = 0.0, None
    while seconds is None:
        most = max(most, pss(pids))
        try:
            seconds = times.get(timeout=2)
        except queue.Empty:
            assert all(worker.exitcode in (None, 0) for worker in workers), "the bare loop failed"
    for worker in workers:
        worker.join()
    return Timing(seconds, most, shared.clone())


def tensors(data: Dataset) -> tuple[Tensor, Tensor]:
    """Return the normalised training samples as float32, and their labels."""
    x = torch.from_numpy(data.x_train).float()
    x = (x / 255 if data.x_train.dtype == np.uint8 else x).sub_(torch.from_numpy(data.mean))
    x = x.div_(torch.from_numpy(data.std))
    x = x.permute(0, 3, 1, 2).contiguous() if x.dim() == 4 else x
    return x, torch.from_numpy(data.y_train)


def minibatches(prepared: Prepared, round: int, client: int) -> Iterator[Tensor]:
    """Return the samples of each step of a client's round, the same as in rayfl."""
    s, samples = prepared.settings, prepared.partition.client(client)
    steps = steps_per_round(len(samples), s.batch_size, s.local_epochs, s.local_steps)
    batches = batch_schedule(samples, s.batch_size, steps, s.seed, round, client, "none", 0)
    for indices, size in zip(batches.indices, batches.sizes, strict=True):
        yield torch.from_numpy(indices[:size])


def train_client(
    prepared: Prepared, model: nn.Module, x: Tensor, y: Tensor, round: int, client: int
) -> None:
    """Train one client for a round."""
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=prepared.federation.lrs[round - 1])
    for chosen in minibatches(prepared, round, client):
        optimizer.zero_grad()
        loss(model(x[chosen]), y[chosen]).backward()
        optimizer.step()


def _work(index: int, prepared: Prepared, shared, sums, barrier, times) -> None:
    torch.set_num_threads(1)
    f = prepared.federation
    x, y = tensors(prepared.data)
    model, layout = prepared.model.to(memory_format=torch.contiguous_format), Layout(prepared.model)
    empty = torch.zeros(0)
    seconds = []
    for round in range(1, f.rounds + 1):
        barrier.wait()
        began = time.perf_counter()
        cohort = f.cohort(round)
        sums[index].zero_()
        for client in cohort[index::PROCESSES]:
            layout.load(model, shared, empty)
            train_client(prepared, model, x, y, round, client)
            sums[index] += layout.flatten(model)[0] - shared
        barrier.wait()
        if index == 0:
            shared += sums.sum(0) / f.cohort_size
        barrier.wait()
        seconds.append(time.perf_counter() - began)
    if index == 0:
        times.put(seconds)
