"""Description of a sweep's plan, as text."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuning.plan import PlannedTrial, SweepPlan

MOST_LISTED = 10
"""Number of listed trials with the same problem."""


def describe(plan: "SweepPlan") -> str:
    """Describe the plan in a few lines."""
    sweep, placement = plan.sweep, plan.placement
    impossible = [trial for trial in plan.trials if trial.problem]
    points = -(-(plan.count + len(impossible)) // len(sweep.seeds))
    lines = [
        f"sweep {sweep.name}: {quantity(plan.count + len(impossible), 'trial')} "
        f"({quantity(points, 'point')} x {quantity(len(sweep.seeds), 'seed')}), "
        f"search {_name(sweep.search)}, scheduler {_name(sweep.scheduler)}",
        f"each trial: a server, and {quantity(placement.actors, 'client actor')} with {placement.share}",
        f"at once: {plan.at_once} now ({plan.room} client actors fit)"
        + (f", {plan.at_once_grown} once the cluster has grown" if plan.at_once_grown else ""),
    ]
    if plan.unshared:
        lines.append(
            f"base.checkpoint.dir = {plan.unshared!r}: a trial that moves to another node starts anew there, "
            "unless all nodes mount this directory; a URI such as s3://bucket/path is everywhere"
        )
    if plan.unshared_storage:
        lines.append(
            f"storage = {plan.unshared_storage!r}: pbt copies trials from node to node through this "
            "directory, so all nodes must mount it; or give a URI such as s3://bucket/path"
        )
    if impossible:
        lines.append(f"{quantity(len(impossible), 'trial')} cannot run:")
    for problem, trials in by_reason((t, t.problem or "") for t in impossible).items():
        lines += [f"  {problem}", *(f"    {t.settings}" for t in trials[:MOST_LISTED])]
        if len(trials) > MOST_LISTED:
            lines.append(f"    and {len(trials) - MOST_LISTED} more")
    return "\n".join(lines)


def by_reason(reasons: "Iterable[tuple[PlannedTrial, str]]") -> "dict[str, list[PlannedTrial]]":
    """Group the trials by reason."""
    found: dict[str, list[PlannedTrial]] = {}
    for trial, reason in reasons:
        found.setdefault(reason, []).append(trial)
    return found


def quantity(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def _name(choice: object) -> str:
    from tuning.config import SCHEDULER, SEARCH
    from tuning.searchers import Search

    return (SEARCH if isinstance(choice, Search) else SCHEDULER).dump(choice)["name"]
