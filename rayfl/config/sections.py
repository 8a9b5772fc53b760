"""The sections of a config that have no `name`: their keys, types, defaults and rules."""

import functools
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayfl.config import layers, learning_rates
from rayfl.errors import ConfigError
from rayfl.federation.sampling import SAMPLINGS, cohort_size
from rayfl.text import absolute, shown
from rayfl.training.precision import Precision
from rayfl.training.weighting import Weighting

LONGEST_EXPERIMENT, LONGEST_RUN_NAME = 500, 250  # characters; MLflow's limits

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys, infinity and NaN; docstrings describe its keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Federation(Section):
    """The federated training."""

    clients: int = Field(default=20, gt=0)
    """N, clients in all"""
    rounds: int = Field(default=50, gt=0, le=10**6)
    """R, rounds"""
    cohort: Positive | Annotated[float, Field(gt=0, le=1)]
    """clients of a round: an integer is S, a number with a decimal point S / N; 1: one client, 1.0: all"""
    sampling: str = "uniform"
    """of cohorts: S clients, uniform or weighted by their samples; bernoulli: each client with probability
    S / N; or package.module:function, which is called with the clients' numbers of samples [N], S / N, a
    numpy Generator and the round, and returns client ids"""
    weighting: Weighting = "uniform"
    """of a cohort's clients in every mean: equal, by training samples (classic FedAvg), or by local steps"""
    client_dropout: float = Field(default=0.0, ge=0, lt=1)
    """probability that a client of a cohort is lost with its update"""
    local_epochs: int | None = Field(default=None, gt=0, le=10**4)
    """E, passes over a client's data a round"""
    local_steps: int | None = Field(default=None, gt=0, le=10**6)
    """K, minibatches a round, instead of epochs"""
    straggler_prob: float = Field(default=0.0, ge=0, le=1)
    """probability that a client stops early, after any of its steps"""
    batch_size: int = Field(default=50, gt=0)
    """B"""
    loss: str | None = None
    """null: cross-entropy, of numbers their squared error; or package.module:function, which is called with
    outputs [n, classes] and targets [n] and returns the loss of each"""
    lr: float = Field(default=0.1, gt=0)
    """local learning rate of the first round"""
    lr_schedule: str = "constant"
    """over the rounds: constant, exponential, linear or cosine (both end near 0), or package.module:factory,
    which is called with R and returns R factors of lr"""
    lr_decay: float = Field(default=0.998, gt=0, le=1)
    """factor a round, if exponential"""
    lr_warmup: int = Field(default=0, ge=0)
    """first rounds, in which lr rises to that of the schedule"""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """of local SGD, which begins anew in each round"""
    nesterov: bool = False
    """Nesterov's form of it"""
    weight_decay: float = Field(default=0.0, ge=0)
    """added to the direction after clipping"""
    precision: Precision = "float32"
    """arithmetic of local steps, on float32 parameters; tf32: as float32 on CPUs; bfloat16: slow on CPUs
    without such units"""
    clip_norm: float | None = Field(default=None, gt=0)
    """clips each local direction, or gradient (Adam's methods); null: never"""
    eval_every: int = Field(default=1, gt=0)
    """rounds between two evaluations"""
    clients_per_unit: int | None = Field(default=None, gt=0)
    """clients of a work unit; null: chosen from the model and the cohort"""
    stack: int | None = Field(default=None, gt=0)
    """clients that train at once, as one program; null: one, or as many as the processor's cache holds where
    all layers are linear"""

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
        if self.nesterov and not self.momentum:
            raise ConfigError(
                key="federation.nesterov",
                value=True,
                allowed="false without federation.momentum",
                hint="set federation.momentum=0.9, say",
                keys=("federation.momentum",),
            )
        if self.sampling not in SAMPLINGS and ":" not in self.sampling:
            raise ConfigError(
                key="federation.sampling",
                value=self.sampling,
                allowed="'uniform', 'bernoulli' or 'weighted', or an import path 'package.module:function'",
            )
        _ = self.lrs  # a schedule of one's own may be wrong
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

    @functools.cached_property
    def lrs(self) -> tuple[float, ...]:
        """Local learning rate of each round."""
        factors = learning_rates.factors(self.lr_schedule, self.rounds, self.lr_decay)
        warmup = self.lr_warmup
        return tuple(
            self.lr * factor * (min(1.0, (r + 1) / warmup) if warmup else 1.0)
            for r, factor in enumerate(factors)
        )


class Resources(Section):
    """Resources that the client actors ask of the cluster. They change no result."""

    num_actors: Positive | Literal["auto"] = "auto"
    """client actors; auto: as many as fit and have work"""
    cpus_per_actor: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPUs of each, and its threads; auto: 1, or a part if num_actors needs it"""
    gpus_per_actor: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """share of a GPU, a cap on its memory too; auto: 1 if there are any"""
    cuda_graphs: bool = True
    """on GPUs, record local steps and launch each as one, if that gives the same bits"""
    lanes: Positive | Literal["auto"] = "auto"
    """clients that a GPU trains side by side; auto: as many as its memory holds"""
    memories_gb: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """of the object store for clients' memories, the rest of which are in files; auto: 40 % of it, or of the
    machine's memory with --local; a sweep's trials share that"""
    autoscale_timeout_s: float = Field(default=0.0, ge=0)
    """seconds for an autoscaler to add nodes for num_actors; 0: none"""
    time_limit_s: float | None = Field(default=None, gt=0)
    """seconds of a work unit, after which it runs again elsewhere; null: no limit"""

    @model_validator(mode="after")
    def _countable(self) -> Self:
        for key in ("cpus_per_actor", "gpus_per_actor"):
            share = getattr(self, key)
            if share != "auto" and share != round(share, 4):
                raise ConfigError(
                    "must have at most 4 decimals; Ray counts no finer", f"resources.{key}", share
                )
        if self.gpus_per_actor != "auto" and self.gpus_per_actor > 1:
            raise ConfigError(
                key="resources.gpus_per_actor",
                value=self.gpus_per_actor,
                allowed="at most 1: a client actor uses one GPU",
                hint="for more GPUs raise resources.num_actors, with federation.clients_per_unit so small "
                "that each has a unit",
            )
        return self


class Ray(Section):
    """The Ray cluster."""

    address: str | None = None
    """null: started for this run; auto or host:port: a running cluster"""
    object_store_gb: float | None = Field(default=None, ge=0.1)
    """memory for shared arrays where Ray is started for this run, the rest goes to disk; null: Ray's choice,
    30 %"""

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

    enabled: bool = True
    """record the run in MLflow"""
    uri: str | None = None
    """null: $MLFLOW_TRACKING_URI, else sqlite file mlflow.db in the working directory"""
    experiment: str = Field(default="rayfl", min_length=1)
    """MLflow experiment"""
    run_name: str | None = None
    """null: algorithm, data and seed"""
    targets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    """accuracies whose first round is recorded"""
    log_model: bool | None = None
    """keep the final model as the artifact model/model.safetensors; null: yes, but of a sweep's trials only
    with keep_checkpoints"""

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

    dir: str = Field(default="checkpoints", min_length=1)
    """directory, or a URI such as s3://bucket/path"""
    every: Positive | Literal["auto"] | None = "auto"
    """rounds; auto: each half minute, or sooner if files of memories pile up; both: at the end too; null:
    never"""
    keep_last: Positive | None = None
    """checkpoints of a run that are kept; null: 2 while it runs, and 1 once it is done or memories are in
    files"""

    @property
    def location(self) -> str:
        """A URI, or an absolute path, for the server actor may run elsewhere."""
        return self.dir if "://" in self.dir else str(absolute(self.dir))
