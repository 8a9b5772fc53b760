"""Are the processes that compute alike? Else the last digits depend on which of them did."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def unlike(actors: Sequence[Mapping[str, Any]]) -> str:
    """Return a warning if the actors (see `Client.describe`) round differently; empty if they do not."""
    processors = Counter(actor["processor"] for actor in actors)
    if len(processors) < 2:
        return ""
    found = ", ".join(f"{count} with {name}" for name, count in sorted(processors.items()))
    warning = (
        f"the client actors compute on unlike processors ({found}): the last digits of results depend on "
        "which of them trains a client"
    )
    if any(actor["device"] != "cpu" for actor in actors):
        return warning
    return (
        f"{warning}; ATEN_CPU_CAPABILITY=avx2 where Ray is started, on each node, makes them alike"
    )
