"""The sections whose `name` selects a class: data, partition, model and algorithm."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.scheduled import Ramp, Scheduled
from rayfl.config.choice import Choice, import_path
from rayfl.config.messages import config_error
from rayfl.data.datasets import Source
from rayfl.data.partition import Scheme
from rayfl.data.schemes import SCHEMES
from rayfl.data.sources import SOURCES
from rayfl.errors import ConfigError
from rayfl.models import MODELS, Factory, Model
from rayfl.text import one_line, shown


class ModelChoice(Choice):
    """Models may also be made by any function of the user's: `num_classes` and options -> module."""

    def parse(self, value: Any) -> Any:
        name, options = self.split(value)
        factory = self._factory(name)
        if factory is None:
            return super().parse(value)
        init = options.pop("init", None)
        if not isinstance(init, str | None):
            raise ConfigError(key="model.init", value=init, allowed="text, or null")
        try:
            inspect.signature(factory).bind(num_classes=10, **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"cannot be called with num_classes and the options {shown(options)} ({one_line(error)})",
                key="model.name",
                value=name,
            ) from None
        return Factory(path=name, factory=factory, options=options, init=init)

    def has(self, name: Any, key: str) -> bool | None:
        try:
            factory = self._factory(name) if isinstance(name, str) else None
            if factory is None:
                return super().has(name, key)
            if key == "init":
                return True
            inspect.signature(factory).bind_partial(**{key: None})
        except TypeError:
            return False
        except (ConfigError, ValueError):
            return None
        return True

    def _factory(self, name: str) -> Callable[..., Any] | None:
        """Return the function of this name; None for rayfl's own models, and for others of their form."""
        path = self.own_path(name)
        found = None if path is None else import_path(path, "model.name")
        return None if inspect.isclass(found) and issubclass(found, Model) else found

    def dump(self, value: Any) -> dict[str, Any]:
        is_factory = isinstance(value, Factory)
        if not is_factory:
            return super().dump(value)
        init = {} if value.init is None else {"init": value.init}
        return {"name": value.path, **init, **value.options}


class _Ramp(BaseModel):
    """A schedule of a hyper-parameter as configs have it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    first: float = Field(alias="from")
    to: float
    rounds: int = Field(gt=0)
    then: float | None = None


class AlgorithmChoice(Choice):
    """Algorithms, whose numbers may change over the rounds: `rho: {from: 0.001, to: 0.15, rounds: 2000}`."""

    def parse(self, value: Any) -> Any:
        name, options = self.split(value)
        ramps = {
            key: self._ramp(key, option)
            for key, option in options.items()
            if isinstance(option, Mapping) and {"from", "to"} & option.keys()
        }
        if not ramps:
            return super().parse(value)
        first = {key: ramp.first for key, ramp in ramps.items()}
        method = super().parse({"name": name, **options, **first})
        for key in ramps:
            if key in method.only_at_start:
                raise ConfigError(
                    "is read before the first round alone, and cannot change over the rounds",
                    key=f"{self.section}.{key}",
                    value=options[key],
                    hint="give one number",
                )
        scheduled = Scheduled(method=method, ramps=ramps)
        for round in scheduled.turns[1:]:
            now = {key: ramp.at(round) for key, ramp in ramps.items()}
            super().parse({"name": name, **options, **now})
        return scheduled

    def dump(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Scheduled):
            return super().dump(value)
        ramps = {}
        for key, ramp in value.ramps.items():
            ramps[key] = {"from": ramp.first, "to": ramp.last, "rounds": ramp.rounds}
            ramps[key] |= {} if ramp.then == ramp.last else {"then": ramp.then}
        return super().dump(value.method) | ramps

    def _ramp(self, key: str, option: Mapping[str, Any]) -> Ramp:
        try:
            ramp = _Ramp.model_validate_json(json.dumps(option), strict=True)
        except ValidationError as error:
            raise config_error(error, _Ramp, f"{self.section}.{key}") from None
        return Ramp(ramp.first, ramp.to, ramp.rounds, ramp.to if ramp.then is None else ramp.then)


DATA = Choice("data", SOURCES, Source)
PARTITION = Choice("partition", SCHEMES, Scheme)
MODEL = ModelChoice("model", MODELS, Model)
ALGORITHM = AlgorithmChoice("algorithm", ALGORITHMS, Algorithm)
CHOICES = (DATA, PARTITION, MODEL, ALGORITHM)
NAMED = {choice.section: choice.has for choice in CHOICES}
