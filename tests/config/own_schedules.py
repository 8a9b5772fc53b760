"""Schedules of the learning rate as users write them."""


def halves(rounds):
    return [0.5**r for r in range(rounds)]


def too_few(rounds):
    return [1.0]


def zero(rounds):
    return [0.0] * rounds


def fails(rounds):
    return [1 / r for r in range(rounds)]
