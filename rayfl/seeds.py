"""Every random draw of an experiment comes from (seed, purpose, round, client) and nothing else.

So no draw depends on how many actors run, on which of them runs a client, or on what ran before.
"""

from typing import Literal

import numpy as np

Purpose = Literal[
    "partition", "cohort", "batches", "augment", "model", "init", "dropout", "stragglers",
    "long_tail", "feature_shift", "label_noise", "method", "server_method", "validation", "flatness",
    "personal", "privacy", "server_privacy",
]  # fmt: skip
_PURPOSES: dict[Purpose, int] = {
    # The numbers are part of every result: never renumber, only append.
    "partition": 0, "cohort": 1, "batches": 2, "augment": 3, "model": 4, "init": 5,
    "dropout": 6, "stragglers": 7,
    "long_tail": 10, "feature_shift": 11, "label_noise": 12,
    "method": 13, "server_method": 14, "validation": 15, "flatness": 16, "personal": 17,
    "privacy": 20, "server_privacy": 21,
}  # fmt: skip

# Without it (seed, 0, 0, 0) would be the stream of numpy's own default_rng(seed), with which users
# shuffle their data.
_SALT = 0x7261796C


def generator(seed: int, purpose: Purpose, round: int = 0, client: int = 0) -> np.random.Generator:
    """The independent random stream of this purpose, round and client."""
    sequence = np.random.SeedSequence((_SALT, seed, _PURPOSES[purpose], round, client))
    return np.random.Generator(np.random.PCG64(sequence))


def integer(seed: int, purpose: Purpose, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed for libraries that take one integer (torch.manual_seed)."""
    return int(generator(seed, purpose, round, client).integers(2**63))
