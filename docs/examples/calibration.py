"""Macro F1 and the expected calibration error of a classifier.

    F1 = mean over classes of 2 TP / (2 TP + FP + FN)
    ECE = sum over bins of (samples in the bin / n) |accuracy - confidence|

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, equation 3. Run it from
the folder of this file:

    rayfl run quickstart evaluation.metrics='{f1: calibration:macro_f1, ece: calibration:ece}'
"""

import torch
from torch import Tensor

BINS = 15


def macro_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean F1 of the classes that there are, of logits `[n, classes]` and targets `[n]`."""
    classes = outputs.shape[1]
    guess = outputs.argmax(1)
    hit = torch.bincount(targets[guess == targets], minlength=classes)
    guessed, there = (torch.bincount(v, minlength=classes) for v in (guess, targets))
    # FP + TP = guessed, FN + TP = there. A class that is neither has no F1.
    total = guessed + there
    return (2 * hit[total > 0] / total[total > 0]).mean()


def ece(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the expected calibration error, over bins of equal width."""
    confidence, guess = outputs.softmax(1).max(1)
    gap = confidence.double() - (guess == targets).double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    return torch.zeros(BINS).double().index_add(0, bins, gap).abs().sum() / len(targets)
