"""Experiment configs: YAML and dotted overrides -> a frozen, fully resolved `Experiment`.

`overlays` puts files and overrides on top of each other; here are the keys, their types and defaults.
The sections data, partition, model and algorithm have a `name`, and take the options of that name.
"""

import hashlib
import inspect
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.config import layers, shipped
from rayfl.config.choice import Choice, import_path
from rayfl.config.messages import config_error
from rayfl.data.datasets import Source
from rayfl.data.heterogeneity import Heterogeneity
from rayfl.data.partition import Scheme
from rayfl.data.schemes import SCHEMES
from rayfl.data.sources import SOURCES
from rayfl.errors import ConfigError
from rayfl.federation.sampling import Sampling, cohort_size
from rayfl.models import MODELS, Factory, Model
from rayfl.models.pretrained import Pretrainable
from rayfl.text import one_line, shown
from rayfl.training.precision import Precision

# What may differ between two runs of the same experiment: where it runs, who records and keeps it, what is
# computed from its predictions, and where the files of published data and weights lie.
_NOT_IN_HASH = {"resources", "ray", "tracking", "checkpoint", "evaluation"}
LONGEST_EXPERIMENT, LONGEST_RUN_NAME = 500, 250  # characters; MLflow's limits
# What local steps multiply vectors with, or compare their norm to.
_COMPUTED_WITH = ("lr", "weight_decay", "clip_norm")
_PLACES = {"data": {"root", "download"}, "model": {"download"}}
# Options that came later, by section: null means what held before there was a choice.
_NULLABLE = {"data": {"layout"}}

Positive = Annotated[int, Field(gt=0)]


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
                f"model.name = {shown(name)}: cannot be called with num_classes and the options "
                f"{shown(options)} ({one_line(error)})"
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


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Federation(Section):
    """The federated training."""

    clients: Annotated[Positive, Field(description="N, clients in all")] = 20
    rounds: Annotated[Positive, Field(le=10**6, description="R, rounds")] = 50
    cohort: Annotated[
        Positive | Annotated[float, Field(gt=0, le=1)],
        Field(
            description="clients of a round: an integer is S, a number with a decimal point S / N; "
            "1: one client, 1.0: all"
        ),
    ]
    sampling: Annotated[
        Sampling,
        Field(
            description="of cohorts: S clients, uniformly or weighted by their samples; bernoulli: each "
            "client with probability S / N"
        ),
    ] = "uniform"
    client_dropout: Annotated[
        float,
        Field(
            ge=0, lt=1, description="probability that a client of a cohort is lost with its update"
        ),
    ] = 0.0
    local_epochs: Annotated[
        Annotated[int, Field(gt=0, le=10**4)] | None,
        Field(description="E, passes over a client's data a round"),
    ] = None
    local_steps: Annotated[
        Annotated[int, Field(gt=0, le=10**6)] | None,
        Field(description="K, minibatches a round, instead of epochs"),
    ] = None
    straggler_prob: Annotated[
        float,
        Field(
            ge=0, le=1, description="probability that a client stops early, after any of its steps"
        ),
    ] = 0.0
    batch_size: Annotated[Positive, Field(description="B")] = 50
    lr: Annotated[float, Field(gt=0, description="local learning rate of the first round")] = 0.1
    lr_schedule: Annotated[
        Literal["constant", "exponential", "cosine"],
        Field(description="over the rounds; cosine ends at 0"),
    ] = "constant"
    lr_decay: Annotated[float, Field(gt=0, le=1, description="factor a round, if exponential")] = (
        0.998
    )
    weight_decay: Annotated[
        float, Field(ge=0, description="added to the direction after clipping")
    ] = 0.0
    precision: Annotated[
        Precision,
        Field(
            description="arithmetic of local steps, on float32 parameters; tf32: as float32 on CPUs; "
            "bfloat16: slow on CPUs without such units"
        ),
    ] = "float32"
    clip_norm: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="clips each local direction, or gradient (Adam's methods); null: never"),
    ] = None
    eval_every: Annotated[Positive, Field(description="rounds between two evaluations")] = 1
    clients_per_unit: Annotated[
        Positive | None,
        Field(description="clients of a work unit; null: chosen from the model and the cohort"),
    ] = None
    stack: Annotated[
        Positive | None,
        Field(
            description="clients that train at once, as one program; null: one, or as many as the "
            "processor's cache holds where all layers are linear"
        ),
    ] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for first, second in layers.ALTERNATIVES:
            given = [key for key in (first, second) if getattr(self, key) is not None]
            if not given:
                raise ConfigError(
                    f"federation.{first} and federation.{second} are missing; add one of the two"
                )
            if len(given) == 2:
                raise ConfigError(
                    f"federation.{first} = {getattr(self, first)} and federation.{second} = "
                    f"{getattr(self, second)}: give only one of the two"
                )
        if self.cohort > self.clients:
            raise ConfigError(
                f"federation.cohort = {self.cohort}: must be at most "
                f"federation.clients = {self.clients}"
            )
        if self.client_dropout and self.cohort_size == 1 and self.sampling != "bernoulli":
            raise ConfigError(
                f"federation.client_dropout = {self.client_dropout}: must be 0 in cohorts of one "
                "client, for one always comes back; raise federation.cohort"
            )
        return self

    @property
    def participation(self) -> float:
        """S / N; under bernoulli sampling the probability of each client."""
        return self.cohort if isinstance(self.cohort, float) else self.cohort / self.clients

    @property
    def cohort_size(self) -> int:
        """S, clients of a round; under bernoulli sampling their mean."""
        return cohort_size(self.participation, self.clients)

    @property
    def lrs(self) -> tuple[float, ...]:
        """Local learning rate of each round."""
        factor = {
            "constant": lambda r: 1.0,
            "exponential": lambda r: self.lr_decay**r,
            "cosine": lambda r: 0.5 * (1 + math.cos(math.pi * r / self.rounds)),
        }[self.lr_schedule]
        return tuple(self.lr * factor(r) for r in range(self.rounds))


class Evaluation(Section):
    """What is computed from the predictions on the test set, beside loss and accuracy."""

    per_class: Annotated[bool, Field(description="accuracy of each class")] = False
    per_client: Annotated[
        bool,
        Field(description="accuracy on the clients' own distributions: mean, quantiles, worst"),
    ] = True


class Resources(Section):
    """What the client actors ask of the cluster. Changes no result."""

    num_actors: Annotated[
        Positive | Literal["auto"],
        Field(description="client actors; auto: as many as fit and have work"),
    ] = "auto"
    cpus_per_actor: Annotated[
        Annotated[float, Field(gt=0)] | Literal["auto"],
        Field(
            description="CPUs of each, and its threads; auto: 1, or a part if num_actors needs it"
        ),
    ] = "auto"
    gpus_per_actor: Annotated[
        Annotated[float, Field(ge=0)] | Literal["auto"],
        Field(description="share of a GPU, a cap on its memory too; auto: 0.25 if there are any"),
    ] = "auto"
    cuda_graphs: Annotated[
        bool,
        Field(
            description="on GPUs, record local steps and launch each as one, if that gives the same bits"
        ),
    ] = True
    autoscale_timeout_s: Annotated[
        float,
        Field(ge=0, description="seconds for an autoscaler to add nodes for num_actors; 0: none"),
    ] = 0.0
    time_limit_s: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(
            description="seconds of a work unit, after which it runs again elsewhere; null: no limit"
        ),
    ] = None

    @model_validator(mode="after")
    def _countable(self) -> Self:
        for key in ("cpus_per_actor", "gpus_per_actor"):
            share = getattr(self, key)
            if share != "auto" and share != round(share, 4):
                raise ConfigError(
                    f"resources.{key} = {share}: must have at most 4 decimals; Ray counts no finer"
                )
        if self.gpus_per_actor != "auto" and self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ConfigError(
                f"resources.gpus_per_actor = {self.gpus_per_actor}: must be a fraction up to 1, "
                "or a whole number"
            )
        return self


class Ray(Section):
    """Where Ray runs."""

    address: Annotated[
        str | None,
        Field(description="null: started for this run; auto or host:port: a running cluster"),
    ] = None
    object_store_gb: Annotated[
        Annotated[float, Field(ge=0.1)] | None,
        Field(
            description="memory for shared arrays where Ray is started for this run, the rest goes to "
            "disk; null: Ray's choice, 30 %"
        ),
    ] = None

    @model_validator(mode="after")
    def _own(self) -> Self:
        if self.address is not None and self.object_store_gb is not None:
            raise ConfigError(
                f"ray.object_store_gb = {self.object_store_gb}: a running cluster (ray.address = "
                f"{shown(self.address)}) has its own; give `ray start` --object-store-memory, or leave it out"
            )
        return self


class Tracking(Section):
    """MLflow."""

    enabled: Annotated[bool, Field(description="record the run in MLflow")] = True
    uri: Annotated[
        str | None, Field(description="null: sqlite file mlflow.db in the working directory")
    ] = None
    experiment: Annotated[str, Field(min_length=1, description="MLflow experiment")] = "rayfl"
    run_name: Annotated[str | None, Field(description="null: algorithm, data and seed")] = None
    targets: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...],
        Field(description="accuracies whose first round is recorded"),
    ] = (0.5, 0.6, 0.7, 0.8, 0.9)

    @model_validator(mode="after")
    def _short(self) -> Self:
        limits = {"experiment": LONGEST_EXPERIMENT, "run_name": LONGEST_RUN_NAME}
        for key, limit in limits.items():
            if len(name := getattr(self, key) or "") > limit:
                raise ConfigError(
                    f"tracking.{key} = {shown(name)}: must have at most {limit} characters, MLflow's limit; "
                    f"this has {len(name)}"
                )
        return self


class Checkpoint(Section):
    """What a run leaves to go on from."""

    dir: Annotated[
        str, Field(min_length=1, description="directory, or a URI such as s3://bucket/path")
    ] = "checkpoints"
    every: Annotated[
        Positive | Literal["auto"] | None,
        Field(description="rounds; auto: each half minute; both: at the end too; null: never"),
    ] = "auto"
    keep_last: Annotated[Positive, Field(description="checkpoints of a run that are kept")] = 2


class Experiment(Section):
    """One federated training: a config and a seed."""

    seed: Annotated[int, Field(ge=0, description="every random draw follows from it")] = 0
    data: Annotated[Source, DATA] = SOURCES["digits"]()
    partition: Annotated[Scheme, PARTITION] = SCHEMES["dirichlet"]()
    heterogeneity: Heterogeneity = Heterogeneity()
    model: Annotated[Model, MODEL] = MODELS["mlp"]()
    algorithm: Annotated[Algorithm, ALGORITHM] = ALGORITHMS["fedwmsam"]()
    federation: Federation
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    ray: Ray = Ray()
    tracking: Tracking = Tracking()
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _can_grow(self) -> Self:
        if self.resources.autoscale_timeout_s and self.ray.address is None:
            raise ConfigError(
                f"resources.autoscale_timeout_s = {self.resources.autoscale_timeout_s:g}: the Ray that is "
                "started for this run gets no new nodes; name a cluster by ray.address, or leave "
                "resources.autoscale_timeout_s at 0"
            )
        return self

    @model_validator(mode="after")
    def _holds_in_float32(self) -> Self:
        """Parameters are float32: a number that none can hold becomes infinity, or 0."""
        federation = {key: getattr(self.federation, key) for key in _COMPUTED_WITH}
        options = {f"algorithm.{key}": v for key, v in ALGORITHM.dump(self.algorithm).items()}
        for key, value in ({f"federation.{k}": v for k, v in federation.items()} | options).items():
            if isinstance(value, float) and not 1e-45 < abs(value) < 3.4e38 and value != 0:
                raise ConfigError(
                    f"{key} = {value:g}: must be 0, or from 1e-45 to 3.4e38; parameters are float32, "
                    "which holds no other numbers"
                )
        if type(self.algorithm) in ALGORITHMS.values():  # one's own may begin at infinity
            self._begins_finite()
        return self

    def _begins_finite(self) -> None:
        """ConfigError if a number in the algorithm's first vectors, which its options make, is too large."""
        broken, w = [], torch.zeros(1)
        try:
            server = self.algorithm.init_server(w)
            start, shared = self.algorithm.broadcast(w, server)
            vectors = {**self.algorithm.init_client(w), **shared, **server, "start": start}
            broken = [name for name, vector in vectors.items() if not vector.isfinite().all()]
        except (RuntimeError, OverflowError) as error:
            broken = [one_line(error)]
        if broken:
            raise ConfigError(
                f"algorithm = {shown(ALGORITHM.dump(self.algorithm))}: with these options the first round "
                f"has numbers too large for float32, which goes up to 3.4e38 ({broken[0]}); make them smaller"
            )

    @property
    def algorithm_name(self) -> str:
        return ALGORITHM.dump(self.algorithm)["name"]

    @property
    def hash(self) -> str:
        """Identity of the experiment: everything that its result depends on, and nothing else."""
        content = json.dumps(self._identity(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _identity(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", exclude=_NOT_IN_HASH)
        for section, places in _PLACES.items():
            content[section] = {k: v for k, v in content[section].items() if k not in places}
        for section, keys in _NULLABLE.items():
            given = content[section].items()
            content[section] = {k: v for k, v in given if v is not None or k not in keys}
        if isinstance(self.model, Pretrainable):
            content["model"]["pretrained"] = self.model.content_of_pretrained()
        return content

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

    def flat_identity(self) -> dict[str, Any]:
        """The part of it that `hash` is made of."""
        return _flatten(self._identity())


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Experiment:
    """Return the experiment of a YAML file, a shipped config's name or a mapping, with overrides.

    Raises ConfigError: one line that names the dotted key, the value and what is allowed.
    """
    is_file = isinstance(source, str | Path)
    config = layers.read(shipped.find(source), NAMED) if is_file else layers.plain(source)
    config = layers.merge(config, layers.parse_overrides(overrides), NAMED)
    try:
        # JSON's strict mode: no silent conversion ("true" is no number), but lists become tuples.
        return Experiment.model_validate_json(json.dumps(config), strict=True)
    except ValidationError as error:
        raise config_error(error, Experiment) from None


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
