"""Search space of a sweep: axes over dotted keys of the experiment -> points.

An axis defines the values of its key. With `when`, it applies only to points where other axes have the given
values. A point is a mapping from dotted key to value. Grid axes are crossed with each other; sampled axes are
drawn, and every draw is crossed with the grid.
"""

import zlib
from collections.abc import Hashable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from rayfl.config.identity import is_identity, is_task
from rayfl.config.layers import Layer, join
from rayfl.config.messages import RENAMED
from rayfl.config.sections import Section
from rayfl.errors import ConfigError
from rayfl.text import nearest, shown, written

Point = dict[str, Any]

KINDS = ("grid", "range", "choice", "uniform", "loguniform", "integers")
_GRIDS = ("grid", "range")

Value = Any
Bounds = tuple[float, float]


class Axis(Section):
    """Values of one key."""

    grid: tuple[Value, ...] | None = Field(default=None, min_length=1)
    """each of these values"""
    range: tuple[float, float, float] | None = None
    """first, last and step: each value from first to last"""
    choice: tuple[Value, ...] | None = Field(default=None, min_length=1)
    """drawn from these values"""
    uniform: Bounds | None = None
    """drawn from low to high"""
    loguniform: Bounds | None = None
    """drawn from low to high, evenly in the logarithm"""
    integers: tuple[int, int] | None = None
    """drawn from low to high, both included"""
    when: dict[str, Value] = {}  # noqa: RUF012 (a pydantic default, copied for each)
    """other axes' keys and their values, where this axis applies"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given)}" if given else "has no values"
            raise ValueError(f"{found}; give exactly one of {', '.join(KINDS)}")
        value = getattr(self, self.kind)
        if self.kind == "range":
            first, last, step = value
            if step <= 0 or last < first:
                raise ValueError(
                    f"range = {shown(list(value))}: must be [first, last, step] with first <= last "
                    "and step > 0"
                )
        elif self.kind in ("uniform", "loguniform", "integers"):
            low, high = value
            if not (low < high and (self.kind != "loguniform" or low > 0)):
                above = " and above 0" if self.kind == "loguniform" else ""
                raise ValueError(
                    f"{self.kind} = {shown(list(value))}: must be [low, high], ascending{above}"
                )
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def is_grid(self) -> bool:
        return self.kind in _GRIDS

    def values(self) -> tuple[Value, ...]:
        """Return all values of a grid axis."""
        if self.grid is not None:
            return self.grid
        assert self.range is not None
        # Decimal, because 0.1 + 0.2 must be 0.3: the value is part of the experiment's identity.
        first, last, step = (Decimal(repr(number)) for number in self.range)
        numbers = [first + i * step for i in range(int((last - first) / step) + 1)]
        # All of one type: among fractions, the cohort 1.0 is all clients, and 1 would be one.
        are_integers = all(number == number.to_integral_value() for number in numbers)
        return tuple(map(int if are_integers else float, numbers))

    def draw(self, rng: np.random.Generator) -> Value:
        """Draw one value of a sampled axis."""
        if self.choice is not None:
            return self.choice[int(rng.integers(len(self.choice)))]
        if self.integers is not None:
            return int(rng.integers(self.integers[0], self.integers[1] + 1))
        if self.loguniform is not None:
            low, high = np.log(self.loguniform)
            return float(np.exp(rng.uniform(low, high)))
        assert self.uniform is not None
        return float(rng.uniform(*self.uniform))

    def applies(self, point: Point) -> bool:
        """Return True if the point matches `when`."""
        return matches(point, self.when)


Space = Mapping[str, Axis]


def matches(point: Point, conditions: Mapping[str, Value]) -> bool:
    """Return True if the point has these values (any of them, where it is a list)."""
    return all(
        key in point and point[key] in (value if isinstance(value, list) else [value])
        for key, value in conditions.items()
    )


def dotted(space: Layer, prefix: str = "") -> Layer:
    """Return the space with dotted keys: `algorithm: {rho: ...}` becomes `algorithm.rho: ...`."""
    flat: Layer = {}
    for key, value in space.items():
        path = f"{prefix}{key}"
        is_section = isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())
        is_section = is_section and "when" not in value  # an axis of which this alone is given
        inner = dotted(value, f"{path}.") if is_section and value else {path: value}
        flat = join(flat, inner)
    return flat


def text(point: Point) -> str:
    """Return the point as overrides."""
    return " ".join(f"{key}={written(value)}" for key, value in point.items())


def task(point: Point) -> Hashable:
    """Return the part of a point that defines the task, without the method."""
    return tuple(sorted((key, repr(value)) for key, value in point.items() if is_task(key)))


def check(space: Space) -> None:
    """Raise ConfigError for invalid axes."""
    for key, axis in space.items():
        section = key.partition(".")[0]
        if key in RENAMED:
            raise ConfigError(f"is now called space.{''.join(RENAMED[key])}", f"space.{key}")
        if not is_identity(key):  # points that differ in it alone would be the same experiment
            raise ConfigError("changes no result and can be no axis", f"space.{key}")
        if section == "seed":
            hint = "use 'seeds: [0, 1, 2]'"
            raise ConfigError("every point runs with every seed", "space.seed", hint=hint)
        for other in axis.when:
            if other == key or other not in space:
                known = [name for name in space if name != key]
                raise ConfigError(
                    key=f"space.{key}.when.{other}",
                    allowed=f"another axis of the space{nearest(other, known)}",
                    hint=f"there are: {', '.join(known) or 'none'}",
                )
    _ordered(space)


def points(space: Space, samples: int | None, seed: int) -> Iterator[Point]:
    """Yield all points: the grid, crossed with `samples` draws of the sampled axes (None: there are none).

    Draw i of an axis depends on (seed, i, key) alone, so more samples or another axis do not change
    the earlier draws.
    """
    for i in range(samples if samples is not None else 1):
        drawn = {
            key: axis.draw(np.random.default_rng((seed, i, zlib.crc32(key.encode()))))
            for key, axis in space.items()
            if not axis.is_grid
        }
        yield from _grid(_ordered(space), drawn, {})


def applicable(space: Space, suggested: Point) -> Point:
    """Drop the axes of a searcher's suggestion whose `when` is false."""
    point: Point = {}
    for key, axis in _ordered(space).items():
        if key in suggested and axis.applies(point):
            point[key] = suggested[key]
    return {key: point[key] for key in space if key in point}


def _grid(axes: dict[str, Axis], drawn: Point, point: Point) -> Iterator[Point]:
    if not axes:
        yield point
        return
    (key, axis), *rest = axes.items()
    if not axis.applies(point):
        yield from _grid(dict(rest), drawn, point)
        return
    for value in axis.values() if axis.is_grid else (drawn[key],):
        yield from _grid(dict(rest), drawn, {**point, key: value})


def _ordered(space: Space) -> dict[str, Axis]:
    """Order the axes, each after those in its `when`. Raises ConfigError for a circle."""
    ordered: dict[str, Axis] = {}
    waiting = dict(space)
    while waiting:
        ready = [key for key, axis in waiting.items() if set(axis.when) <= set(ordered)]
        if not ready:
            raise ConfigError(f"the 'when' of {', '.join(waiting)} go in a circle", "space")
        ordered[ready[0]] = waiting.pop(ready[0])
    return ordered
