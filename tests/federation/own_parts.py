"""Metrics, right and wrong, that configs of tests name by import path."""

import torch

CALLS = []


def right(outputs, targets):
    """The accuracy."""
    return (outputs.argmax(-1) == targets).double().mean()


def total(outputs, targets):
    """Any bit of any output changes it."""
    assert outputs.dtype == torch.float32
    CALLS.append(len(targets))
    return float(outputs.double().sum())


def greedy(outputs, targets):
    """Changes what it was given."""
    targets.zero_()
    outputs.zero_()
    return 1


def not_a_number(outputs, targets):
    return float("nan")


def fails_on_a_model(outputs, targets):
    """Accepts the outputs of a trial, whose deviation is 1."""
    if abs(outputs.std() - 1) > 0.03:
        raise ValueError("no such outputs")
    return 1.0


def many(outputs, targets):
    return outputs


def raising(outputs, targets):
    raise KeyError("no such metric")


number = 3
