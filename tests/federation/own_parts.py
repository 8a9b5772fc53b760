"""Metrics, right and wrong, that configs of tests name by import path."""

import torch
from torch import nn

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


ROUNDS = []


def on_round(round):
    """Keep the round, and return the norm of the weights."""
    ROUNDS.append(round)
    squares = [value.double().square().sum() for value in round.state_dict().values()]
    return {"norm": torch.stack(squares).sum().sqrt(), "nothing": float("inf")}


def spoils(round):
    """Change all that it gets."""
    for value in [*round.state_dict().values(), *round.model().parameters()]:
        with torch.no_grad():
            value.zero_()
    round.metrics.clear()
    torch.manual_seed(0)


def fails_in_round_2(round):
    if round.number == 2:
        raise KeyError("not in my dictionary")


def words(round):
    return {"a": "b"}


def of_two(round, other):
    pass


def normalised(num_classes):
    """A model of frozen, trained and averaged parts."""
    frozen = nn.Linear(64, 8).requires_grad_(False)
    return nn.Sequential(
        nn.Flatten(), frozen, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes)
    )


def round_robin(sizes, participation, rng, round):
    """Return the next clients in turn."""
    size = max(1, int(participation * len(sizes)))
    return [(size * round + i) % len(sizes) for i in range(size)]


def drawn(sizes, participation, rng, round):
    """Return what uniform sampling draws, and spoil the sizes."""
    sizes[:] = 0
    return rng.choice(len(sizes), round_half(participation * len(sizes)), replace=False)


def round_half(number):
    return int(number + 0.5)


def none(sizes, participation, rng, round):
    return []


def twice(sizes, participation, rng, round):
    return [1, 1]


def beyond(sizes, participation, rng, round):
    return [len(sizes)]


def halves(sizes, participation, rng, round):
    return [0.5]


def ends_early(sizes, participation, rng, round):
    """Go wrong in a round between the first and the last."""
    return [] if round == 2 else [0, 1]


def forgets_the_generator(sizes, participation, rng, round):
    CALLS.append(round)
    return [len(CALLS) % len(sizes)]
