"""The work of a round, by the config and the clients' samples alone: units, local steps and weights."""

import math

import numpy as np

from rayfl.config.sections import Federation
from rayfl.data.partition import Partition
from rayfl.training.batches import steps_per_round
from rayfl.training.weighting import weights

# Arithmetic that takes longer than a quarter of a millisecond (a step's kernels), and longer than a unit's
# messages and sums, which the server handles on the cores that train.
STEP_FLOP = 12.5e6
UNIT_FLOP = 2e9


def clients_per_unit(
    parameters: int,
    dense: bool,
    cohort_size: int,
    batch_size: int,
    samples: float,
    stack: int | None = None,
) -> int:
    """Clients of a work unit where the config leaves it open; never a matter of how many actors there are.

    One, in cohorts of up to 64, so that any number of actors shares a round evenly; or a whole `stack`,
    if the config gives one. Chains of linear layers (`dense`) train as a stack: so many clients that each
    step's arithmetic outweighs the launch of its kernels, and the unit's (`samples` of a client a round)
    outweighs the message that brings it.
    """
    if not dense:
        return max(-(-cohort_size // 64), min(stack or 1, cohort_size))
    flop_per_sample = 6 * parameters
    smallest = max(
        STEP_FLOP / (flop_per_sample * batch_size), UNIT_FLOP / (flop_per_sample * samples)
    )
    # A power of two, so that two, four or eight actors get the same share.
    units = 2 ** int(math.log2(max(cohort_size / max(smallest, 1), 1)))
    return -(-cohort_size // units)


def samples_per_round(fed: Federation, partition: Partition) -> float:
    """Samples that a client's gradients see in a round, on average."""
    if fed.local_steps is not None:
        return fed.local_steps * fed.batch_size
    return (fed.local_epochs or 1) * len(partition.indices) / fed.clients


def total_weight(fed: Federation, partition: Partition) -> float:
    """Weight of all clients together, were they in one cohort and none of them a straggler."""
    sizes = partition.sizes
    if fed.weighting != "steps":
        return float(weights(fed.weighting, sizes, steps=sizes).sum())
    return float(full_steps(fed, partition).sum())


def full_steps(fed: Federation, partition: Partition) -> np.ndarray:
    """Local steps a round of each client that is no straggler, `[N]`."""
    given = fed.batch_size, fed.local_epochs, fed.local_steps
    known, of_client = np.unique(partition.sizes, return_inverse=True)  # a million have few sizes
    return np.array([steps_per_round(n, *given) for n in known.tolist()])[of_client]


def in_one_place(fed: Federation, partition: Partition) -> tuple[Federation, Partition]:
    """A federation of one client with all data, which takes a cohort's local steps, on average."""
    alone = {
        "clients": 1,
        "cohort": 1,
        "sampling": "uniform",
        "client_dropout": 0.0,
        "straggler_prob": 0.0,
        "local_epochs": None,
        "local_steps": max(1, round(fed.participation * full_steps(fed, partition).sum())),
    }
    return fed.model_copy(update=alone), partition.pooled()
