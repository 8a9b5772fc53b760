"""The weights of clients' uploads in the cohort's mean."""

from typing import Literal

import numpy as np

Weighting = Literal["uniform", "samples", "steps"]


def weights(weighting: Weighting, samples: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Weight of each client, float64 `[C]`, given its training samples and local steps `[C]`.

    uniform: 1, as the papers of this project, whose clients are of one size. samples: n_i, as FedAvg,
    McMahan et al., AISTATS 2017, arXiv:1602.05629, Algorithm 1. steps: K_i.
    """
    match weighting:
        case "uniform":
            return np.ones(len(samples))
        case "samples":
            return samples.astype(np.float64)
        case "steps":
            return steps.astype(np.float64)
