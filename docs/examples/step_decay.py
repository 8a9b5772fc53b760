"""A learning rate that falls to a tenth after half of the rounds, and again after three quarters.

Run it from the folder of this file:

    rayfl run quickstart federation.lr_schedule=step_decay:step_decay
"""


def step_decay(rounds: int) -> list[float]:
    """Return the factor of `federation.lr` in each round."""
    return [0.1 ** ((r >= rounds / 2) + (r >= rounds * 3 / 4)) for r in range(rounds)]
