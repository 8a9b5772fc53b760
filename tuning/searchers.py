"""Options of `search`, which choose the points of the space."""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rayfl.config.identity import is_task
from rayfl.errors import ConfigError
from tuning.space import Axis, Point, Space, applicable, points

Samples = Annotated[int, Field(gt=0, description="points that are drawn")]
Seed = Annotated[int, Field(ge=0, description="of the draws")]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Base class of the searches."""

    def check(self, space: Space) -> None:
        """Raise ConfigError if this search does not support the space."""

    def points(self, space: Space) -> Iterator[Point]:
        """Yield the points that are known before the sweep starts."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Grid(Search):
    """Search of every combination of the axes' values."""

    def check(self, space: Space) -> None:
        for key, axis in space.items():
            if not axis.is_grid:
                raise ConfigError(
                    "is drawn at random, but search.name = 'grid'; "
                    "give 'grid' or 'range', or set search.name to random",
                    key=f"space.{key}.{axis.kind}",
                )

    def points(self, space: Space) -> Iterator[Point]:
        return points(space, None, 0)


@dataclass(frozen=True, kw_only=True)
class Random(Search):
    """Search of `num_samples` draws of the sampled axes, each with every combination of the grid."""

    num_samples: Samples
    seed: Seed = 0

    def check(self, space: Space) -> None:
        if all(axis.is_grid for axis in space.values()):
            raise ConfigError(
                "no axis of the space is drawn; give one of them choice, "
                "uniform, loguniform or integers, or set search.name to grid",
                key="search.name",
                value="random",
            )

    def points(self, space: Space) -> Iterator[Point]:
        return points(space, self.num_samples, self.seed)


@dataclass(frozen=True, kw_only=True)
class Optuna(Search):
    """Search by Optuna, which suggests points from the mean results, over the seeds, of earlier points.

    With scheduler asha it resembles BOHB (Falkner et al., ICML 2018, arXiv:1807.01774), but with asynchronous
    halving, and with one model of all last values instead of one for each rung.
    """

    num_samples: Samples
    seed: Seed = 0
    sampler: Annotated[Literal["tpe", "cmaes", "random"], Field(description="Optuna's sampler")] = (
        "tpe"
    )

    def check(self, space: Space) -> None:
        for key, axis in space.items():
            if axis.is_grid:
                raise ConfigError(
                    "search.name = 'optuna' draws every axis; give "
                    "choice, uniform, loguniform or integers",
                    key=f"space.{key}.{axis.kind}",
                )
            if is_task(key):
                raise ConfigError(
                    "search.name = 'optuna' would search for the easiest task; set "
                    f"base.{key} and run a sweep for each of its values",
                    key=f"space.{key}",
                )
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError(
                "search.name = 'optuna': needs the package optuna; "
                "`pip install 'rayfl[optuna]'` installs it"
            )

    def points(self, space: Space) -> Iterator[Point]:
        """Yield an arbitrary point in place of those that are suggested later: all have the same data."""
        yield applicable(space, next(points(space, 1, self.seed)))

    def searcher(self, space: Space, metric: str, mode: str) -> Any:
        """Return Ray Tune's searcher."""
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers: Mapping[str, Any] = {
            "tpe": optuna.samplers.TPESampler,
            "cmaes": optuna.samplers.CmaEsSampler,
            "random": optuna.samplers.RandomSampler,
        }
        return OptunaSearch(
            {key: domain(axis) for key, axis in space.items()},
            metric=metric,
            mode=mode,
            sampler=samplers[self.sampler](seed=self.seed),
        )


def domain(axis: Axis) -> Any:
    """Return the axis as a domain of Ray Tune."""
    from ray import tune

    if axis.choice is not None:
        return tune.choice(list(axis.choice))
    if axis.integers is not None:
        return tune.randint(axis.integers[0], axis.integers[1] + 1)
    if axis.loguniform is not None:
        return tune.loguniform(*axis.loguniform)
    if axis.uniform is not None:
        return tune.uniform(*axis.uniform)
    return tune.choice(list(axis.values()))


SEARCHES: dict[str, type[Search]] = {"grid": Grid, "random": Random, "optuna": Optuna}
