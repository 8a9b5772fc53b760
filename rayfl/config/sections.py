"""The sections of a config that have no `name`: their keys, types, defaults and rules."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayfl.config import layers
from rayfl.errors import ConfigError
from rayfl.federation.sampling import Sampling, cohort_size
from rayfl.text import shown
from rayfl.training.precision import Precision

LONGEST_EXPERIMENT, LONGEST_RUN_NAME = 500, 250  # characters; MLflow's limits

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys, infinity and NaN."""

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
            given = [name for name in (first, second) if getattr(self, name) is not None]
            key, other = f"federation.{first}", f"federation.{second}"
            if not given:
                raise ConfigError(
                    f"is missing, and so is {other}", key, hint="add one of the two", keys=(other,)
                )
            if len(given) == 2:
                raise ConfigError(
                    f"{other} = {getattr(self, second)} is given too",
                    *(key, getattr(self, first)),
                    hint="give only one of the two",
                    keys=(other,),
                )
        if self.cohort > self.clients:
            raise ConfigError(
                key="federation.cohort",
                value=self.cohort,
                allowed=f"at most federation.clients = {self.clients}",
                keys=("federation.clients",),
            )
        if self.client_dropout and self.cohort_size == 1 and self.sampling != "bernoulli":
            raise ConfigError(
                key="federation.client_dropout",
                value=self.client_dropout,
                allowed="0 in cohorts of one client, for one always comes back",
                hint="raise federation.cohort",
                keys=("federation.cohort",),
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
        return tuple(self.lr * self._factor(r) for r in range(self.rounds))

    def _factor(self, r: int) -> float:
        if self.lr_schedule == "exponential":
            return self.lr_decay**r
        if self.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * r / self.rounds))
        return 1.0


class Evaluation(Section):
    """Metrics of the predictions on the test set, beside loss and accuracy."""

    per_class: Annotated[bool, Field(description="accuracy of each class")] = False
    per_client: Annotated[
        bool,
        Field(description="accuracy on the clients' own distributions: mean, quantiles, worst"),
    ] = True


class Resources(Section):
    """Resources that the client actors ask of the cluster. They change no result."""

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
                    "must have at most 4 decimals; Ray counts no finer", f"resources.{key}", share
                )
        if self.gpus_per_actor != "auto" and self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ConfigError(
                key="resources.gpus_per_actor",
                value=self.gpus_per_actor,
                allowed="a fraction up to 1, or a whole number",
            )
        return self


class Ray(Section):
    """The Ray cluster."""

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
                f"a running cluster (ray.address = {shown(self.address)}) has its own",
                key="ray.object_store_gb",
                value=self.object_store_gb,
                hint="give `ray start` --object-store-memory, or leave it out",
                keys=("ray.address",),
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
                    f"must have at most {limit} characters, MLflow's limit; this has {len(name)}",
                    key=f"tracking.{key}",
                    value=name,
                )
        return self


class Checkpoint(Section):
    """Checkpoints, from which a run goes on."""

    dir: Annotated[
        str, Field(min_length=1, description="directory, or a URI such as s3://bucket/path")
    ] = "checkpoints"
    every: Annotated[
        Positive | Literal["auto"] | None,
        Field(description="rounds; auto: each half minute; both: at the end too; null: never"),
    ] = "auto"
    keep_last: Annotated[Positive, Field(description="checkpoints of a run that are kept")] = 2
