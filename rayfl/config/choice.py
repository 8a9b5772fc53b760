"""Sections of a config whose `name` selects the dataclass that holds their other keys.

Algorithms, data sources, partitions and models each have a registry: a plain dict from a name to a
frozen dataclass. A name of the form `package.module:Name` is imported instead; and installed packages
offer names as entry points.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError, type_adapter
from pydantic_core import CoreSchema, core_schema

from rayfl.config.installed import offered
from rayfl.config.messages import config_error, unknown_key
from rayfl.errors import ConfigError
from rayfl.text import nearest, one_line, shown


@dataclass(frozen=True)
class Choice:
    """One such section. As a pydantic annotation, it reads and writes `{name: ..., **options}`."""

    section: str
    known: Mapping[str, type]
    base: type

    @property
    def offered(self) -> Mapping[str, str]:
        """Import path of what installed packages offer, by name."""
        return offered(self.section, frozenset(self.known))

    def own_path(self, name: str) -> str | None:
        """Return the import path of what is not rayfl's own; None for what is, and for unknown names."""
        return name if ":" in name else self.offered.get(name)

    def parse(self, value: Any) -> Any:
        """Return the object that `{name: ..., **options}` describes; ConfigError if there is none."""
        name, options = self.split(value)
        found = self._found(name)
        keys = [field.name for field in dataclasses.fields(found)]
        for key, option in options.items():
            if key not in keys:
                raise unknown_key(self.section, key, option, ["name", *keys], {})
        try:
            built = _adapter(found).validate_json(json.dumps(options), strict=True)
            self.dump(built)
        except ValidationError as error:
            raise config_error(error, found, self.section) from None
        except ConfigError:
            raise
        except Exception as error:  # whatever the class raises
            raise self._error(
                name, f"cannot be made with the options {shown(options)} ({_reason(error)})"
            ) from error
        return built

    def has(self, name: Any, key: str) -> bool | None:
        """Return whether sections of this name have this option; None if there is no such name."""
        try:
            found = self._found(self.split({"name": name})[0])
        except ConfigError:
            return None
        return key in [field.name for field in dataclasses.fields(found)]

    def dump(self, value: Any) -> dict[str, Any]:
        """Return `{name: ..., **options}` for an object that `parse` made."""
        cls = type(value)
        names = {known: name for name, known in self.known.items()}
        name = names.get(cls) or self._offered_as(cls) or f"{cls.__module__}:{cls.__qualname__}"
        return {"name": name, **_adapter(cls).dump_python(value, mode="json")}

    def split(self, value: Any) -> tuple[str, dict[str, Any]]:
        """Return name and options of the section; ConfigError if it is none or has no name."""
        key = f"{self.section}.name"
        if not isinstance(value, Mapping):
            hint = f"set {key} to one of {self._names}"
            raise ConfigError("must be a section", self.section, value, hint=hint, keys=(key,))
        if "name" not in value:
            raise ConfigError("is missing", key, hint=f"add one of {self._names}")
        name = value["name"]
        if not isinstance(name, str):
            raise ConfigError(key=key, value=name, allowed=f"one of {self._names}")
        return name, {key: option for key, option in value.items() if key != "name"}

    def _found(self, name: str) -> type:
        """Return the dataclass of this name; ConfigError if there is none."""
        path = self.own_path(name)
        if path is None and name not in self.known:
            unknown = f"unknown name{nearest(name, [*self.known, *self.offered])}"
            raise self._error(name, unknown, hint=f"allowed: {self._names}")
        found = self.known[name] if path is None else import_path(path, f"{self.section}.name")
        if not (inspect.isclass(found) and issubclass(found, self.base)):
            base = f"{self.base.__module__}.{self.base.__name__}"
            raise self._error(name, f"must name a subclass of {base}")
        if "__dataclass_fields__" not in vars(found):
            hint = "put @dataclass(frozen=True, kw_only=True) above the class"
            raise self._error(name, "must be a dataclass", hint)
        return found

    def _offered_as(self, cls: type) -> str | None:
        """Return the name of a class that an installed package offers."""
        for name, path in self.offered.items():
            if path.partition(":")[0].split(".")[0] == cls.__module__.split(".")[0]:
                with contextlib.suppress(ConfigError):
                    if import_path(path, self.section) is cls:
                        return name
        return None

    @property
    def _names(self) -> str:
        return f"{', '.join(sorted({*self.known, *self.offered}))}, or an import path 'package.module:Name'"

    def _error(self, name: str, message: str, hint: str = "") -> ConfigError:
        return ConfigError(message, f"{self.section}.name", name, hint=hint)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.parse,
            core_schema.any_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(self.dump),
        )


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    """Build the validator of a dataclass once: that takes a hundred times as long as to use it."""
    return TypeAdapter(cls)


def import_path(path: str, key: str) -> Any:
    """Return the object at `package.module:Name`; ConfigError names the dotted config key `key`."""
    module, _, attribute = path.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        hint = (
            "give 'package.module:Name' of a module that is installed or in the working directory"
        )
        raise ConfigError(f"cannot be imported ({_reason(error)})", key, path, hint=hint) from error
    try:
        return attrgetter(attribute)(imported)
    except AttributeError:
        missing = f"{module} has no {shown(attribute)}{nearest(attribute, dir(imported))}"
        raise ConfigError(missing, key, path) from None


def _reason(error: BaseException) -> str:
    """Return the error in words, with the line of the user's own code that raised it."""
    reason = f"{type(error).__name__}: {one_line(error)}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if frame.filename.startswith("<") or frame.filename in (__file__, type_adapter.__file__):
        return reason
    return f"{reason}, at {frame.filename}:{frame.lineno}"
