"""Schedules of the local learning rate over the rounds, by name or by import path."""

import math
from collections.abc import Callable
from itertools import islice

from rayfl.config.choice import import_path
from rayfl.errors import ConfigError
from rayfl.text import nearest, one_line, shown

KEY = "federation.lr_schedule"
Factor = Callable[[int, int, float], float]
"""Factor of round r, from 0, of R rounds; the last argument is the decay."""

SCHEDULES: dict[str, Factor] = {
    "constant": lambda r, rounds, decay: 1.0,
    "exponential": lambda r, rounds, decay: decay**r,
    "linear": lambda r, rounds, decay: 1 - r / rounds,
    "cosine": lambda r, rounds, decay: 0.5 * (1 + math.cos(math.pi * r / rounds)),
}


def factors(schedule: str, rounds: int, decay: float) -> list[float]:
    """Factor of the learning rate in each round; ConfigError if there is no such schedule."""
    if schedule in SCHEDULES:
        return [SCHEDULES[schedule](r, rounds, decay) for r in range(rounds)]
    if ":" not in schedule:
        raise ConfigError(
            f"unknown name{nearest(schedule, SCHEDULES)}",
            KEY,
            schedule,
            hint=f"allowed: {', '.join(SCHEDULES)}, or an import path 'package.module:factory'",
        )
    made = import_path(schedule, KEY)
    try:
        found = [float(factor) for factor in islice(made(rounds), rounds + 1)]
    except (Exception, SystemExit) as error:  # whatever the factory raises
        words = f"fails when it is called with {rounds} rounds ({type(error).__name__}: {one_line(error)})"
        raise ConfigError(words, KEY, schedule) from error
    wrong = [value for value in found if not 0 < value < math.inf]
    if wrong or len(found) != rounds:
        count = f"{len(found)} factors" if len(found) <= rounds else "more factors"
        what = f"the factor {shown(wrong[0])}" if wrong else count
        raise ConfigError(
            f"returns {what} for {rounds} rounds",
            KEY,
            schedule,
            hint="return one finite number above 0 for each round",
        )
    return found
