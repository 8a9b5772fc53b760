"""Description of a sweep's plan, as text."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuning.plan import PlannedTrial, SweepPlan

_MOST_LISTED = 10  # trials with the same problem
_OF_TEST_SET = ("test/", "client/", "average/accuracy", "average/loss")  # metrics


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
    configs = (trial.config for trial in plan.feasible)
    if spent := [e for c in configs if c.privacy for e in c.privacy.epsilons(c.federation)[-1:]]:
        ends = dict.fromkeys(f"{epsilon:.3g}" for epsilon in (min(spent), max(spent)))
        lines.append(f"epsilon of a client after all rounds: {' to '.join(ends)}")
    if points > 1 and sweep.metric.startswith(_OF_TEST_SET):
        lines.append(_chosen_on_test(plan))
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
    problems = ((trial, trial.problem or "") for trial in impossible)
    lines += listing(problems, "  ", lambda trial: trial.settings)
    return "\n".join(lines)


def listing(
    reasons: "Iterable[tuple[PlannedTrial, str]]",
    prefix: str,
    show: "Callable[[PlannedTrial], str]",
    hint: str = "",
) -> Iterator[str]:
    """Yield each reason once, followed by its first trials and the number of the others."""
    found: dict[str, list[PlannedTrial]] = {}
    for trial, reason in reasons:
        found.setdefault(reason, []).append(trial)
    for reason, trials in found.items():
        yield f"{prefix}{reason}"
        yield from (f"    {show(trial)}" for trial in trials[:_MOST_LISTED])
        if len(trials) > _MOST_LISTED:
            yield f"    and {len(trials) - _MOST_LISTED} more{hint}"


def _chosen_on_test(plan: "SweepPlan") -> str:
    """Say that the best point's result is no fair one, and what to do."""
    from tuning.config import holds_out

    metric = plan.sweep.metric
    remedy = (
        "metric=validation/accuracy chooses by the samples that data.validation holds out"
        if holds_out(plan.sweep.base)
        else "base.data.validation=0.1 holds out a tenth of each client's training samples to choose by"
    )
    return f"points are chosen by {metric}, which then flatters the best; {remedy}"


def quantity(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def _name(choice: object) -> str:
    from tuning.config import SCHEDULER, SEARCH
    from tuning.searchers import Search

    return (SEARCH if isinstance(choice, Search) else SCHEDULER).dump(choice)["name"]
