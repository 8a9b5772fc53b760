"""Experiment configs: YAML and dotted overrides -> a frozen, fully resolved `Experiment`.

A config is layered: the file that `extends` names, the file itself, then `section.key=value` overrides.
Sections with a `name` (data, partition, model, algorithm) take the options of that name; a layer that
changes the name starts the section afresh, so options of the old name do not linger.
"""

import dataclasses
import hashlib
import inspect
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.data.datasets import SOURCES, Source
from rayfl.data.partition import SCHEMES, Scheme
from rayfl.errors import ConfigError
from rayfl.models import MODELS, Factory, Model
from rayfl.registry import lookup, nearest

_REGISTRIES: dict[str, Mapping[str, type]] = {
    "data": SOURCES,
    "partition": SCHEMES,
    "model": MODELS,
    "algorithm": ALGORITHMS,
}
# What may differ between two runs of the same experiment: where it runs, who records it, and where the
# files of a published dataset lie.
_NOT_IN_HASH = {"resources", "ray", "tracking"}
_PLACES = {"root", "download"}

_ALTERNATIVES = [("cohort_size", "participation"), ("local_epochs", "local_steps")]

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Federation(Section):
    """The federated training."""

    clients: Positive = Field(20, description="N, clients in all")
    rounds: Positive = Field(50, description="R, rounds")
    cohort_size: Positive | None = Field(None, description="S, clients of a round")
    participation: float | None = Field(
        None, gt=0, le=1, description="S / N, instead of cohort_size"
    )
    local_epochs: Positive | None = Field(
        None, description="E, passes over a client's data a round"
    )
    local_steps: Positive | None = Field(
        None, description="K, minibatches a round, instead of epochs"
    )
    batch_size: Positive = Field(50, description="B")
    lr: float = Field(0.1, gt=0, description="local learning rate of the first round")
    lr_schedule: Literal["constant", "exponential", "cosine"] = Field(
        "constant", description="over the rounds; cosine ends at 0"
    )
    lr_decay: float = Field(0.998, gt=0, le=1, description="factor a round, if exponential")
    weight_decay: float = Field(0.0, ge=0, description="added to the direction after clipping")
    max_norm: float | None = Field(
        None, gt=0, description="clips each local direction; null: never"
    )
    eval_every: Positive = Field(1, description="rounds between two evaluations")
    clients_per_unit: Positive | None = Field(
        None, description="clients of a work unit; null: chosen from the model and the cohort size"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Federation":
        for pair in _ALTERNATIVES:
            _exactly_one(self, *pair)
        if self.cohort_size is not None and self.cohort_size > self.clients:
            raise ConfigError(
                f"federation.cohort_size = {self.cohort_size}: must be at most "
                f"federation.clients = {self.clients}"
            )
        return self

    @property
    def cohort(self) -> int:
        """S, clients of a round."""
        if self.cohort_size is not None:
            return self.cohort_size
        assert self.participation is not None
        return max(1, round(self.participation * self.clients))

    @property
    def lrs(self) -> tuple[float, ...]:
        """Local learning rate of each round."""
        factor = {
            "constant": lambda r: 1.0,
            "exponential": lambda r: self.lr_decay**r,
            "cosine": lambda r: 0.5 * (1 + math.cos(math.pi * r / self.rounds)),
        }[self.lr_schedule]
        return tuple(self.lr * factor(r) for r in range(self.rounds))


class Resources(Section):
    """What the client actors ask of the cluster. Changes no result."""

    num_actors: Positive | Literal["auto"] = Field(
        "auto", description="client actors; auto: as many as fit and have work"
    )
    cpus_per_actor: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="CPUs of each, and its threads; auto: 1, or a part if num_actors needs it",
    )
    gpus_per_actor: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="share of a GPU, a cap on its memory too; auto: 0.25 where there are GPUs",
    )

    @model_validator(mode="after")
    def _whole_gpus(self) -> "Resources":
        if self.gpus_per_actor != "auto" and self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ConfigError(
                f"resources.gpus_per_actor = {self.gpus_per_actor}: must be a fraction up to 1, or whole"
            )
        return self


class Ray(Section):
    """Where Ray runs."""

    address: str | None = Field(
        None, description="null: started for this run; auto or host:port: a running cluster"
    )


class Tracking(Section):
    """MLflow."""

    enabled: bool = Field(True, description="record the run in MLflow")
    uri: str | None = Field(
        None, description="null: sqlite file mlflow.db in the working directory"
    )
    experiment: str = Field("rayfl", min_length=1, description="MLflow experiment")
    run_name: str | None = Field(None, description="null: algorithm, data and seed")
    targets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.5, 0.6, 0.7, 0.8, 0.9), description="accuracies whose first round is recorded"
    )


def _named(section: str, base: Any) -> Any:
    """Type of a section whose `name` decides which dataclass holds its other keys."""
    return Annotated[
        Any,
        BeforeValidator(lambda value: _from_options(section, base, value)),
        PlainSerializer(lambda value: _to_options(section, value)),
    ]


class Experiment(Section):
    """One federated training: a config and a seed."""

    seed: int = Field(0, ge=0, description="every random draw follows from it")
    data: _named("data", Source) = Field(default_factory=SOURCES["digits"])
    partition: _named("partition", Scheme) = Field(default_factory=SCHEMES["dirichlet"])
    model: _named("model", Model) = Field(default_factory=MODELS["mlp"])
    algorithm: _named("algorithm", Algorithm) = Field(default_factory=ALGORITHMS["fedwmsam"])
    federation: Federation
    resources: Resources = Field(default_factory=Resources)
    ray: Ray = Field(default_factory=Ray)
    tracking: Tracking = Field(default_factory=Tracking)

    @property
    def algorithm_name(self) -> str:
        return _to_options("algorithm", self.algorithm)["name"]

    @property
    def hash(self) -> str:
        """Identity of the experiment: everything that its result depends on, and nothing else."""
        content = self.model_dump(mode="json", exclude=_NOT_IN_HASH)
        content["data"] = {k: v for k, v in content["data"].items() if k not in _PLACES}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved config as a file that gives this experiment again."""
        stream = io.StringIO()
        yaml = YAML()
        yaml.default_flow_style = False
        yaml.dump(self.model_dump(mode="json"), stream)
        return stream.getvalue()

    def flat(self) -> dict[str, Any]:
        """The resolved config with dotted keys."""
        return _flatten(self.model_dump(mode="json"))


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Experiment:
    """The experiment of a YAML file (or a mapping like one), with `section.key=value` overrides.

    Raises ConfigError: one line that names the dotted key, the value and what is allowed.
    """
    config = _read(Path(source)) if isinstance(source, str | Path) else dict(source)
    for override in overrides:
        config = _merge(config, _parse_override(override))
    _check_json(config)
    try:
        # JSON's strict mode: no silent conversion ("true" is no number), but lists become tuples.
        return Experiment.model_validate_json(json.dumps(config), strict=True)
    except ValidationError as error:
        raise _config_error(error, Experiment, ()) from None


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config file, on top of the file that it extends."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"extends = {path.name!r}: the files extend each other in a circle")
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except OSError as error:
        raise ConfigError(f"config file '{path}': {error.strerror or error}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config file '{path}' is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"config file '{path}': must hold sections such as 'federation:', not {content!r}"
        )
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(
            f"extends = {base!r}: must be the path of a config file, relative to this one"
        )
    return _merge(_read(path.parent / base, (*seen, path)), content)


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r}: must look like algorithm.rho=0.05")
    try:
        value = YAML(typ="safe", pure=True).load(text) if text.strip() else None
    except YAMLError:
        value = text
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return value


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    # A layer that gives one of two alternatives takes the other back.
    given = {a: b for pair in _ALTERNATIVES for a, b in (pair, pair[::-1])}
    dropped = {given[key] for key in layer if key in given and given[key] not in layer}
    merged = {key: value for key, value in base.items() if key not in dropped}
    for key, value in layer.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = key in _REGISTRIES and value.get("name", old.get("name")) != old.get("name")
            merged[key] = dict(value) if renamed else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _check_json(config: Mapping[str, Any]) -> None:
    for key, value in _flatten(config).items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{key} = {value!r}: must be a finite number, text, true, false or a list"
            ) from None


def _from_options(section: str, base: type, value: Any) -> Any:
    """The dataclass for `{name: ..., **options}` of this section."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(
            f"{section} = {value!r}: must be a section with a name; "
            f"allowed {section}.name: {', '.join(sorted(_REGISTRIES[section]))}"
        )
    options = {key: option for key, option in value.items() if key != "name"}
    found = lookup(_REGISTRIES[section], value["name"], f"{section}.name")
    if section == "model" and ":" in value["name"]:
        return _factory(value["name"], found, options)
    if ":" in value["name"] and not (inspect.isclass(found) and issubclass(found, base)):
        raise ConfigError(
            f"{section}.name = {value['name']!r}: is no subclass of {base.__module__}.{base.__name__}"
        )
    known = {field.name for field in dataclasses.fields(found)}
    for key in options:
        if key not in known:
            raise _unknown(
                f"{section}.{key}", options[key], [f"{section}.{k}" for k in known | {"name"}]
            )
    try:
        return TypeAdapter(found).validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        raise _config_error(error, found, (section,)) from None


def _factory(path: str, factory: Any, options: dict[str, Any]) -> Factory:
    try:
        inspect.signature(factory).bind(num_classes=10, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"model.name = {path!r}: cannot be called with num_classes and {options} ({error})"
        ) from None
    return Factory(path=path, factory=factory, options=options)


def _to_options(section: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Factory):
        return {"name": value.path, **value.options}
    names = {cls: name for name, cls in _REGISTRIES[section].items()}
    cls = type(value)
    name = names.get(cls, f"{cls.__module__}:{cls.__qualname__}")
    return {"name": name, **TypeAdapter(cls).dump_python(value, mode="json")}


def _exactly_one(section: Federation, first: str, second: str) -> None:
    given = [key for key in (first, second) if getattr(section, key) is not None]
    if len(given) != 1:
        shown = " and ".join(
            f"federation.{key} = {getattr(section, key)}" for key in (first, second)
        )
        raise ConfigError(f"{shown}: give exactly one of the two (set the other to null)")


def _config_error(error: ValidationError, model: Any, prefix: tuple[str, ...]) -> ConfigError:
    """The first thing that pydantic found, as one line."""
    first = error.errors()[0]
    # Locations inside a union name its members too; a dotted key holds field names and indices only.
    fields = _fields(model)
    path: list[str] = []
    for part in first["loc"]:
        if str(part) in fields or isinstance(part, int):
            path.append(str(part))
            fields = _fields(fields.get(str(part)))
        elif first["type"] in ("extra_forbidden", "unexpected_keyword_argument", "missing"):
            path.append(str(part))
    key = ".".join((*prefix, *path)) or ".".join(prefix)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        parent = ".".join((*prefix, *path[:-1]))
        siblings = _fields(_descend(model, path[:-1]))
        return _unknown(
            key, first["input"], [f"{parent}.{name}" if parent else name for name in siblings]
        )
    if first["type"] == "missing":
        return ConfigError(f"{key} is missing; add it to the config file or as an override")
    return ConfigError(f"{key} = {_shown(first['input'])}: {_allowed(error)}")


def _allowed(error: ValidationError) -> str:
    """What pydantic would accept: for a union, every member's words."""
    first = error.errors()[0]
    same = [e["msg"] for e in error.errors() if e["loc"][:2] == first["loc"][:2]]
    words = " or ".join(dict.fromkeys(m.removeprefix("Value error, ") for m in same))
    return words[0].lower() + words[1:]


def _unknown(key: str, value: Any, known: list[str]) -> ConfigError:
    allowed = ", ".join(sorted(known))
    return ConfigError(
        f"{key} = {_shown(value)}: unknown key{nearest(key, known)}; allowed: {allowed}"
    )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"'{text}'" if isinstance(value, str) else text


def _fields(model: Any) -> dict[str, Any]:
    """Field names of a pydantic model or dataclass -> the type of nested sections."""
    if inspect.isclass(model) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    if dataclasses.is_dataclass(model):
        return {field.name: None for field in dataclasses.fields(model)}
    return {}


def _descend(model: Any, path: list[str]) -> Any:
    for part in path:
        model = _fields(model).get(part)
    return model


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
