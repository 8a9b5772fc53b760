"""Swings of a run, the FedWMSAM paper's momentum echo, in numbers that need its rounds alone.

The paper ("FedWMSAM", NeurIPS 2025, arXiv:2511.22080) shows curves and defines no number; these are ours.
"""

from collections.abc import Sequence

import numpy as np

FEWEST = 10
"""Evaluations of which a tenth is at least one."""


def reversals(cosines: Sequence[float]) -> float:
    """Share of the rounds whose mean update points against the last one, of update/cos_previous."""
    return sum(cosine < 0 for cosine in cosines) / len(cosines)


def oscillation(values: Sequence[float]) -> float | None:
    """Standard deviation of an accuracy around its centred moving average; None for too few evaluations.

    The window is a tenth of the n evaluations, as the odd number 2h + 1 that is nearest, and at least 3. Only
    the n - 2h evaluations count that have a whole window, so that a line has no oscillation at its ends
    either. The curve of a steep rise stays in it: up to 0.007 of an exponential rise by 0.6.
    """
    if len(values) < FEWEST:
        return None
    h = max(1, len(values) // 20)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(values, dtype=float), 2 * h + 1)
    return float(np.std(windows[:, h] - windows.mean(axis=1)))


def overshoot(values: Sequence[float]) -> float:
    """Largest fall of an accuracy below its best so far; 0 if it never falls."""
    best = np.maximum.accumulate(np.asarray(values, dtype=float))
    return float(np.max(best - values))
