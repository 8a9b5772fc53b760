"""Options of `scheduler`, which decides the trials that continue.

Schedulers decide at exact rounds: a trial reports at them with its evaluations. Only trials
of the same task (data, partition, number of clients) are compared; otherwise, for example, the easiest
Dirichlet alpha would win. In population-based training, a trial takes over the server state and client
memories of another one, so its trials differ only in the mutated keys.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from rayfl.config.identity import is_task
from rayfl.errors import ConfigError
from rayfl.text import nearest
from tuning.searchers import Optuna, Search, domain
from tuning.space import Point, Space, task

_MOST_ROUNDS = (
    10**6
)  # Ray's `max_t`: above the rounds of any trial; `ASHA.rounds` lists a trial's rungs

Rounds = Annotated[int, Field(gt=0, description="rounds")]


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Base class of the schedulers."""

    decides_on_points = False
    """True if the seeds of a point go on, or end, together: a trial then waits for the others, paused."""

    def rounds(self, last: int) -> Sequence[int]:
        """Return the rounds before the `last` at which this scheduler decides on a trial."""
        return ()

    def check(self, space: Space, search: Search) -> None:
        """Raise ConfigError if this scheduler does not support the sweep."""

    def group(self, point: Point, seed: int) -> Hashable:
        """Return the group of a trial. Only trials of the same group are compared."""
        return task(point)

    def build(self, space: Space, metric: str, mode: str) -> Any:
        """Return Ray Tune's scheduler of one group."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NoScheduler(Scheduler):
    """No scheduler: every trial runs to its end."""


@dataclass(frozen=True, kw_only=True)
class ASHA(Scheduler):
    """Asynchronous successive halving: at each rung, all but the best 1/reduction_factor end."""

    grace_period: Annotated[Rounds, Field(description="round of the first rung")] = 10
    reduction_factor: Annotated[
        int, Field(ge=2, description="a rung's rounds, as a multiple of those of the rung below")
    ] = 3

    decides_on_points = True

    def rounds(self, last: int) -> Sequence[int]:
        rungs, rung = [], self.grace_period
        while rung < last:
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs

    def build(self, space: Space, metric: str, mode: str) -> Any:
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            time_attr="rounds",
            metric=metric,
            mode=mode,
            grace_period=self.grace_period,
            reduction_factor=self.reduction_factor,
            max_t=max(_MOST_ROUNDS, self.grace_period),
        )


@dataclass(frozen=True, kw_only=True)
class Median(Scheduler):
    """Median rule: a trial ends if its best value is worse than the median of the others' means so far."""

    grace_period: Annotated[Rounds, Field(description="rounds before any trial may end")] = 10
    every: Annotated[Rounds, Field(description="rounds between two comparisons")] = 5
    min_samples: Annotated[int, Field(gt=0, description="other trials that it takes")] = 3

    decides_on_points = True

    def rounds(self, last: int) -> Sequence[int]:
        first = -(-self.grace_period // self.every) * self.every
        return range(first, last, self.every)

    def build(self, space: Space, metric: str, mode: str) -> Any:
        from ray.tune.schedulers import MedianStoppingRule

        return MedianStoppingRule(
            time_attr="rounds",
            metric=metric,
            mode=mode,
            grace_period=self.grace_period,
            min_samples_required=self.min_samples,
        )


@dataclass(frozen=True, kw_only=True)
class PBT(Scheduler):
    """Population-based training: the worst trials continue from copies of the best, with other values."""

    mutate: Annotated[
        tuple[str, ...], Field(min_length=1, description="axes whose values change on the way")
    ]
    every: Annotated[Rounds, Field(description="rounds between two exploits")] = 10
    quantile: Annotated[
        float, Field(gt=0, le=0.5, description="share of the trials that are replaced")
    ] = 0.25
    resample_probability: Annotated[
        float,
        Field(ge=0, le=1, description="probability of a new draw; else the value times 0.8 or 1.2"),
    ] = 0.25

    def rounds(self, last: int) -> Sequence[int]:
        return range(self.every, last, self.every)

    def check(self, space: Space, search: Search) -> None:
        for key in self.mutate:
            if key not in space:
                raise ConfigError(
                    f"{key!r} is no axis of the space{nearest(key, space)}; "
                    f"axes: {', '.join(space)}",
                    key="scheduler.mutate",
                )
            if is_task(key) or not key.startswith(("algorithm.", "federation.")) or space[key].when:
                raise ConfigError(
                    f"{key!r} cannot change within a run; numbers of algorithm and "
                    "federation.lr, without 'when', can",
                    key="scheduler.mutate",
                    keys=("federation.lr",),
                )
        if isinstance(search, Optuna):
            raise ConfigError("needs search.name grid or random", key="scheduler.name", value="pbt")

    def group(self, point: Point, seed: int) -> Hashable:
        fixed = sorted((k, repr(v)) for k, v in point.items() if k not in self.mutate)
        return (tuple(fixed), seed)

    def decided(
        self, last: int, reached: Sequence[int], ended: Sequence[int], exploited: Sequence[int] = ()
    ) -> int:
        """Return the round at which earlier commands have decided last, or 0.

        `reached`: round of the checkpoint of each trial that goes on; `ended`: last round of each other one;
        `exploited`: rounds at which one took over another. A trial gets beyond such a round only once all
        have met there.
        """
        most = max(reached, default=0)
        is_passed = max(ended, default=0) > most > 0
        return max(
            (r for r in self.rounds(last) if r < most + is_passed or r in exploited), default=0
        )

    def build(
        self,
        space: Space,
        metric: str,
        mode: str,
        group: Hashable = None,
        decided: int = 0,
        on_exploit: Callable[[Any, int], None] = lambda trial, round: None,
    ) -> Any:
        """`decided`: round at which earlier commands have decided last; the next one is the first here.

        `on_exploit` is called with a trial that takes over another one, and the round, before any goes on.
        """
        from tuning.population import Population

        return Population(
            repr(group),
            on_exploit,
            time_attr="rounds",
            metric=metric,
            mode=mode,
            perturbation_interval=self.every,
            # Without it Ray Tune takes the round of the first decision for one that is still to come, and
            # once all trials have met at the one after it, starts none of them again.
            burn_in_period=decided + self.every,
            hyperparam_mutations={
                key: list(space[key].values()) if space[key].is_grid else domain(space[key])
                for key in self.mutate
            },
            quantile_fraction=self.quantile,
            resample_probability=self.resample_probability,
            custom_explore_fn=lambda config: config | _within(space, self.mutate, config),
            log_config=False,
            require_attrs=False,
        )


SCHEDULERS: dict[str, type[Scheduler]] = {
    "none": NoScheduler,
    "asha": ASHA,
    "median": Median,
    "pbt": PBT,
}


def _within(space: Space, keys: tuple[str, ...], config: Point) -> Point:
    """Return the values of these keys, clipped to the bounds of their axes."""
    moved: Point = {}
    for key in keys:
        axis = space[key]
        bounds = axis.uniform or axis.loguniform or axis.integers
        if bounds:
            moved[key] = min(max(config[key], bounds[0]), bounds[1])
    return moved
