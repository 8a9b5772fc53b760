"""The sections whose `name` selects a class: data, partition, model and algorithm."""

import inspect
from typing import Any

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.config.choice import Choice, import_path
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
        if ":" not in name:
            return super().parse(value)
        factory = import_path(name, "model.name")
        try:
            inspect.signature(factory).bind(num_classes=10, **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"cannot be called with num_classes and the options {shown(options)} ({one_line(error)})",
                key="model.name",
                value=name,
            ) from None
        return Factory(path=name, factory=factory, options=options)

    def has(self, name: Any, key: str) -> bool | None:
        if not (isinstance(name, str) and ":" in name):
            return super().has(name, key)
        try:
            inspect.signature(import_path(name, "model.name")).bind_partial(**{key: None})
        except TypeError:
            return False
        except (ConfigError, ValueError):
            return None
        return True

    def dump(self, value: Any) -> dict[str, Any]:
        is_factory = isinstance(value, Factory)
        return {"name": value.path, **value.options} if is_factory else super().dump(value)


DATA = Choice("data", SOURCES, Source)
PARTITION = Choice("partition", SCHEMES, Scheme)
MODEL = ModelChoice("model", MODELS, Model)
ALGORITHM = Choice("algorithm", ALGORITHMS, Algorithm)
NAMED = {choice.section: choice.has for choice in (DATA, PARTITION, MODEL, ALGORITHM)}
