"""The states of a run: their names, those that end it, and their counts in words."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

State = Literal["running", "finished", "stopped_early", "failed", "infeasible"]

SUCCEEDED: tuple[State, ...] = ("finished", "stopped_early")
ENDED: tuple[State, ...] = (*SUCCEEDED, "failed", "infeasible")
STATES = (*ENDED, "interrupted", "running")
"""All that a table of runs may say; a run that was killed is interrupted."""


def counted(states: Iterable[str]) -> str:
    """The number of trials in each final state, such as `3 finished, 1 stopped early`."""
    counts = Counter(states)
    return ", ".join(f"{counts[s]} {s.replace('_', ' ')}" for s in ENDED if counts[s])
