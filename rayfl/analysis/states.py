"""The states of a run: their names, those that end it, and their counts in words."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

State = Literal["running", "finished", "stopped_early", "failed", "infeasible"]

SUCCEEDED: tuple[State, ...] = ("finished", "stopped_early")
ENDED: tuple[State, ...] = (*SUCCEEDED, "failed", "infeasible")
STATES = (*ENDED, "interrupted", "running", "superseded")
"""All that a table of runs may say; a run that was killed is interrupted, and one that a run of the same
config with newer code or data replaces is superseded."""


def after_rounds(state: str, rounds: float, last: float | None) -> str:
    """Correct `finished` to `interrupted` for a run that did not reach its last round, if that is known."""
    return "interrupted" if state == "finished" and last is not None and rounds < last else state


def counted(states: Iterable[str], among: Iterable[str] = ENDED) -> str:
    """The number of trials in each of these states, such as `3 finished, 1 stopped early`."""
    counts = Counter(states)
    return ", ".join(f"{counts[s]} {s.replace('_', ' ')}" for s in among if counts[s])
