"""Sections of a config whose `name` selects the dataclass that holds their other keys.

Algorithms, data sources, partitions and models each have a registry: a plain dict from a name to a
frozen dataclass. A name of the form `package.module:Name` is imported instead.
"""

import dataclasses
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

from rayfl.config.messages import config_error, unknown_key
from rayfl.errors import ConfigError
from rayfl.text import nearest, one_line, shown


@dataclass(frozen=True)
class Choice:
    """One such section. As a pydantic annotation, it reads and writes `{name: ..., **options}`."""

    section: str
    known: Mapping[str, type]
    base: type

    def parse(self, value: Any) -> Any:
        """The object that `{name: ..., **options}` describes; ConfigError if there is no such."""
        name, options = self.split(value)
        found = self._found(name)
        keys = [field.name for field in dataclasses.fields(found)]
        for key, option in options.items():
            if key not in keys:
                raise unknown_key(self.section, key, option, ["name", *keys], {})
        try:
            built = TypeAdapter(found).validate_json(json.dumps(options), strict=True)
            self.dump(built)
        except ValidationError as error:
            raise config_error(error, found, self.section) from None
        except ConfigError:
            raise
        except Exception as error:  # whatever the class raises
            raise ConfigError(
                f"{self.section}.name = {shown(name)}: cannot be made with the options {shown(options)} "
                f"({_reason(error)})"
            ) from error
        return built

    def has(self, name: Any, key: str) -> bool | None:
        """Whether sections of this name have this option; None if there is no such name, as `parse` says."""
        try:
            found = self._found(self.split({"name": name})[0])
        except ConfigError:
            return None
        return key in [field.name for field in dataclasses.fields(found)]

    def dump(self, value: Any) -> dict[str, Any]:
        """`{name: ..., **options}` of an object that `parse` made."""
        cls = type(value)
        names = {known: name for name, known in self.known.items()}
        name = names.get(cls, f"{cls.__module__}:{cls.__qualname__}")
        return {"name": name, **TypeAdapter(cls).dump_python(value, mode="json")}

    def split(self, value: Any) -> tuple[str, dict[str, Any]]:
        """Name and options of the section; ConfigError if it is none or has no name."""
        names = f"{', '.join(sorted(self.known))}, or an import path 'package.module:Name'"
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{self.section} = {shown(value)}: must be a section; "
                f"set {self.section}.name to one of {names}"
            )
        if "name" not in value:
            raise ConfigError(f"{self.section}.name is missing; add one of {names}")
        name = value["name"]
        if not isinstance(name, str):
            raise ConfigError(f"{self.section}.name = {shown(name)}: must be one of {names}")
        return name, {key: option for key, option in value.items() if key != "name"}

    def _found(self, name: str) -> type:
        """The dataclass of this name; ConfigError if there is none."""
        found = import_path(name, f"{self.section}.name") if ":" in name else self._lookup(name)
        self._check(name, found)
        return found

    def _lookup(self, name: str) -> type:
        if name not in self.known:
            raise ConfigError(
                f"{self.section}.name = {shown(name)}: unknown name{nearest(name, self.known)}; allowed: "
                f"{', '.join(sorted(self.known))}, or an import path 'package.module:Name'"
            )
        return self.known[name]

    def _check(self, name: str, found: Any) -> None:
        if not (inspect.isclass(found) and issubclass(found, self.base)):
            raise ConfigError(
                f"{self.section}.name = {shown(name)}: must name a subclass of "
                f"{self.base.__module__}.{self.base.__name__}"
            )
        if "__dataclass_fields__" not in vars(found):
            raise ConfigError(
                f"{self.section}.name = {shown(name)}: must be a dataclass; "
                "put @dataclass(frozen=True, kw_only=True) above the class"
            )

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.parse,
            core_schema.any_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(self.dump),
        )


def import_path(path: str, key: str) -> Any:
    """The object at `package.module:Name`; ConfigError names the dotted config key `key`."""
    module, _, attribute = path.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise ConfigError(
            f"{key} = {shown(path)}: cannot be imported ({_reason(error)}); give 'package.module:Name' of "
            "a module that is installed or in the working directory"
        ) from error
    try:
        return attrgetter(attribute)(imported)
    except AttributeError:
        raise ConfigError(
            f"{key} = {shown(path)}: {module} has no {shown(attribute)}{nearest(attribute, dir(imported))}"
        ) from None


def _reason(error: BaseException) -> str:
    """What was raised, and the line of the user's own code that did."""
    reason = f"{type(error).__name__}: {one_line(error)}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if frame.filename.startswith("<") or frame.filename in (__file__, type_adapter.__file__):
        return reason
    return f"{reason}, at {frame.filename}:{frame.lineno}"
