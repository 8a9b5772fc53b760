"""Engines of the benchmarked experiment, and what they are given."""

import copy
import dataclasses
import secrets
from typing import Any

import numpy as np
import torch

from rayfl.algorithms.base import Algorithm
from rayfl.prepared import Prepared
from rayfl.training.engine import Engine
from rayfl.training.units import Broadcast


def engine(
    prepared: Prepared, device: str, algorithm: Algorithm | None = None, **settings: Any
) -> Engine:
    """An engine of this experiment with other local settings, as a client actor has it."""
    return Engine(
        copy.deepcopy(prepared.model),
        algorithm or prepared.config.algorithm,
        prepared.data,
        prepared.partition,
        dataclasses.replace(prepared.settings, **settings),
        device,
        pinned=True,
    )


def broadcast(prepared: Prepared, algorithm: Algorithm) -> Broadcast:
    """What a later round would send: no vector of it is zero."""
    server, _ = prepared.specs()
    w = torch.from_numpy(server.w)
    start, shared = algorithm.broadcast(w, algorithm.init_server(w))
    arrays = {
        name: (value + 1e-4 if value.numel() > 1 else value).numpy()
        for name, value in shared.items()
    }
    return Broadcast(np.asarray(start), arrays, server.buffers, secrets.token_bytes(8))


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def held_mb(device: str) -> float:
    """Megabytes of the GPU that are in use, recordings and the context included; 0 on a CPU."""
    if device != "cuda":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e6
