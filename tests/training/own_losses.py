"""Losses of one's own, right and wrong, for `federation.loss`."""

import torch
from torch.nn import functional as F

CALLS = 0


def cross_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def smoothed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def absolute(outputs, targets):
    return (outputs - targets).abs().sum(-1)


def mean(outputs, targets):
    return F.cross_entropy(outputs, targets)


def constant(outputs, targets):
    return torch.zeros(len(outputs)) + 0 * outputs.detach().sum(-1)


def infinite(outputs, targets):
    return 1 / (0 * outputs.sum(-1))


def in_place(outputs, targets):
    with torch.no_grad():
        targets.zero_()
    return F.cross_entropy(outputs, targets, reduction="none")


def raising(outputs, targets):
    raise KeyError("no such loss")
