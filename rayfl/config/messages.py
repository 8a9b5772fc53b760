"""Messages about configs: types and pydantic's findings as one line for users.

The words come from JSON schemas, so a message says everything that a key allows, not only the first
rule that a value broke.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from rayfl.errors import ConfigError
from rayfl.text import one_line, printable, shown

Schema = Mapping[str, Any]

_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
# Kinds of errors about a type, a bound or a choice: `allowed` says it all. Else pydantic's words stand.
_DESCRIBED = (
    *("_type", "greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("literal_error", "int_from_float", "none_required", "string_too_short", "too_short"),
)
_BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "of at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
}


# Keys of before: key -> what it is called now, and how its value is written.
RENAMED = {
    "federation.dropout": ("federation.client_dropout", ""),
    "federation.stragglers": ("federation.straggler_prob", ""),
    "federation.max_norm": ("federation.clip_norm", ""),
    "federation.cohort_size": ("federation.cohort", " (an integer: clients of a round)"),
    "federation.participation": (
        "federation.cohort",
        " (a fraction of the clients, with a decimal point: 1.0 is all of them)",
    ),
    "resources.wait_s": ("resources.autoscale_timeout_s", ""),
}


def renamed(key: str, value: Any) -> ConfigError | None:
    """Return the error that names the new key; None if `key` is no old one."""
    if key not in RENAMED:
        return None
    name, note = RENAMED[key]
    if note and value is None:
        write = "leave it out"
    else:
        is_share = key == "federation.participation" and isinstance(value, int | float)
        write = f"write {name}={shown(float(value) if is_share else value)}"
    return ConfigError(f"is now called {name}{note}", key, value, hint=write, keys=(name,))


def unknown_key(
    section: str, name: object, value: Any, known: Iterable[str], elsewhere: Mapping[str, str]
) -> ConfigError:
    """Return the error about an unknown key; `elsewhere`: dotted keys of other sections by name."""
    siblings = {key: _dotted(section, key) for key in known}
    named = {**elsewhere, **siblings}
    similar = [named[match] for match in difflib.get_close_matches(str(name), named, n=1)]
    meant = f" (did you mean '{similar[0]}'?)" if similar else ""
    there = f"allowed{f' in {section}' if section else ''}: {', '.join(sorted(siblings))}"
    key = _dotted(section, str(name))
    return ConfigError(f"unknown key{meant}", key, value, hint=there, keys=tuple(similar))


def allowed(schema: Schema, root: Schema | None = None) -> str:
    """Describe the values of a JSON schema, such as "'auto' or an integer greater than 0".

    `root` is the schema whose `$defs` it refers to. Empty if there are no words for it.
    """
    schema = _resolved(schema, root or schema)
    if "anyOf" in schema:
        members = [allowed(member, root or schema) for member in schema["anyOf"]]
        words = sorted(members, key=lambda word: word[:1] not in "'n")  # 'auto' and null go first
        return " or ".join(words) if all(words) else ""
    if "const" in schema or "enum" in schema:
        choices = [shown(c) for c in schema.get("enum", [schema.get("const")])]
        return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
    bounds = " and ".join(f"{word} {schema[b]}" for b, word in _BOUNDS.items() if b in schema)
    match schema.get("type"):
        case "integer" | "number" as kind:
            return f"{'an' if kind == 'integer' else 'a'} {kind} {bounds}".rstrip()
        case "array":
            items = allowed(schema.get("items", {}), root or schema)
            return f"a list, each item {items}" if items else "a list"
        case "object":
            keys = ", ".join(schema.get("properties", {}))
            return f"a section with the keys {keys}" if keys else "a section"
        case "string":
            return "text that is not empty" if schema.get("minLength") else "text"
        case kind:
            return {"boolean": "true or false", "null": "null"}.get(str(kind), "")


def keys_of(schema: Schema, root: Schema) -> Mapping[str, Schema]:
    """Return the schema of each key of a section (which may be null too); none if it is no section."""
    members = [_resolved(m, root) for m in (schema, *_resolved(schema, root).get("anyOf", ()))]
    return next((m["properties"] for m in members if "properties" in m), {})


def schema_of(model: Any) -> Schema:
    """Return the JSON schema of a config class; empty if it has a type that JSON cannot describe."""
    try:
        return TypeAdapter(model).json_schema()
    except PydanticInvalidForJsonSchema:
        return {}


def config_error(error: ValidationError, model: Any, section: str = "") -> ConfigError:
    """Return the first error that pydantic found in a `model`, with its dotted key."""
    root = schema_of(model)
    found = error.errors(include_url=False)
    for unknown in found:  # a key of before goes first, or the new one would be said to be missing
        key = ".".join(map(str, unknown["loc"]))
        if unknown["type"] in _UNKNOWN and (old := renamed(key, unknown["input"])):
            return old
    first = found[0]
    kind, value, location = first["type"], first["input"], first["loc"]
    if kind in _UNKNOWN:
        path, parent = _locate(root, location[:-1], section)
        known = keys_of(parent, root)
        return unknown_key(path, location[-1], value, known, _all_keys(root))
    key, schema = _locate(root, location, section)
    words = allowed(schema, root)
    if kind == "missing":
        about = one_line(schema.get("description", "")) if "properties" not in schema else None
        shape = f"{words or 'a value'}{f' ({about})' if about else ''}"
        return ConfigError("is missing", key, hint=f"add it: {shape}")
    if words and kind.endswith(_DESCRIBED):
        return _not_allowed(key, value, words)
    message = one_line(first["msg"]).removeprefix("Value error, ")
    message = message.removeprefix("Assertion failed, ").replace("Input should be", "must be")
    return ConfigError(message, key, ... if isinstance(value, Mapping) else value)


def _not_allowed(key: str, value: Any, words: str) -> ConfigError:
    if isinstance(value, Mapping) and value:
        inner, value = next(iter(value.items()))
        there = f"{key} has no keys, it must be {words}"
        return ConfigError("unknown key", _dotted(key, inner), value, hint=there, keys=(key,))
    if "text" in words and isinstance(value, bool | int | float):
        words += f" (in quotes: '\"{shown(value)}\"')"
    return ConfigError(key=key, value=value, allowed=words)


def _locate(root: Schema, location: tuple[str | int, ...], section: str) -> tuple[str, Schema]:
    """Return dotted key and schema at a location of pydantic's."""
    path, schema = section, _resolved(root, root)
    for part in location:
        # pydantic's locations name the members of unions too, which are no keys.
        if (child := _child(schema, part, root)) is not None:
            path, schema = _dotted(path, part), child
    return path, schema


def _child(schema: Schema, part: str | int, root: Schema) -> Schema | None:
    for member in (schema, *schema.get("anyOf", ())):
        member = _resolved(member, root)
        values = member.get("additionalProperties") if "[" not in str(part) else None
        children = member.get("properties", {})
        child = member.get("items") if isinstance(part, int) else children.get(part, values)
        if child:
            return _resolved(child, root)
    return None


def _all_keys(root: Schema) -> dict[str, str]:
    """Return the dotted key of each name that `root` and its sections have."""
    root = _resolved(root, root)
    sections = {name: _resolved(child, root) for name, child in root["properties"].items()}
    inner = {k: f"{name}.{k}" for name, s in sections.items() for k in s.get("properties", {})}
    return inner | {name: name for name in sections}


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Return the schema with its reference put in."""
    if "$ref" not in schema:
        return schema
    target = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _dotted(path: str, part: str | int) -> str:
    name = printable(str(part))
    return f"{path}.{name}" if path else name
