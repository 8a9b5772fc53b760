"""Experiment configs: YAML and dotted overrides -> a frozen, fully resolved `Experiment`.

`layers` puts files and overrides on top of each other; keys, types and defaults are in `sections`, and in
`measurements` those that change no result.
The sections data, partition, model and algorithm have a `name`, and take the options of that name.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, ValidationError, model_validator

from rayfl import warm_start
from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.config import layers, shipped
from rayfl.config.identity import config_hash, identity
from rayfl.config.measurements import Diagnostics, Evaluation
from rayfl.config.messages import config_error
from rayfl.config.named import ALGORITHM, CHOICES, DATA, MODEL, NAMED, PARTITION
from rayfl.config.privacy import Privacy
from rayfl.config.sections import (
    Checkpoint,
    Federation,
    Ray,
    Resources,
    Section,
    Tracking,
)
from rayfl.config.values import plain, to_yaml
from rayfl.data.datasets import Source
from rayfl.data.heterogeneity import Heterogeneity
from rayfl.data.partition import Scheme
from rayfl.data.schemes import SCHEMES
from rayfl.data.sources import SOURCES
from rayfl.errors import ConfigError
from rayfl.models import MODELS, Model
from rayfl.models.pretrained import FromFiles
from rayfl.provenance import code_of
from rayfl.text import one_line

# Local steps multiply vectors with these, or compare their norm to them.
_COMPUTED_WITH = ("lr", "weight_decay", "clip_norm")


class Experiment(Section):
    """One federated training: a config and a seed."""

    seed: int = Field(default=0, ge=0)
    """every random draw follows from it"""
    data: Annotated[Source, DATA] = SOURCES["digits"]()
    partition: Annotated[Scheme, PARTITION] = SCHEMES["dirichlet"]()
    heterogeneity: Heterogeneity = Heterogeneity()
    model: Annotated[Model, MODEL] = MODELS["mlp"]()
    algorithm: Annotated[Algorithm, ALGORITHM] = ALGORITHMS["fedwmsam"]()
    federation: Federation
    privacy: Privacy | None = None
    evaluation: Evaluation = Evaluation()
    diagnostics: Diagnostics = Diagnostics()
    callbacks: tuple[str, ...] = ()
    """functions of your own, package.module:function, called in the server's process after each round, with a
    rayfl.federation.callbacks.Round; numbers that they return by name are recorded as own/NAME"""
    resources: Resources = Resources()
    ray: Ray = Ray()
    tracking: Tracking = Tracking()
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _can_grow(self) -> Self:
        if self.resources.autoscale_timeout_s and self.ray.address is None:
            raise ConfigError(
                "the Ray that is started for this run gets no new nodes",
                key="resources.autoscale_timeout_s",
                value=self.resources.autoscale_timeout_s,
                hint="name a cluster by ray.address, or leave it at 0",
                keys=("ray.address",),
            )
        return self

    @model_validator(mode="after")
    def _averages_something(self) -> Self:
        average, rounds = self.evaluation.average, self.federation.rounds
        if average is not None and average.rule(rounds).first > rounds:
            raise ConfigError(
                key="evaluation.average.swa",
                value=average.swa,
                allowed=f"at most federation.rounds = {rounds}",
                keys=("federation.rounds",),
            )
        return self

    @model_validator(mode="after")
    def _is_private(self) -> Self:
        if self.privacy is not None:
            self.privacy.check(self.federation)
        return self

    @model_validator(mode="after")
    def _holds_in_float32(self) -> Self:
        """Parameters are float32: a number that none can hold becomes infinity, or 0."""
        federation = {key: getattr(self.federation, key) for key in _COMPUTED_WITH}
        options = _flatten({"algorithm": ALGORITHM.dump(self.algorithm)})
        if self.privacy is not None:
            options |= {"privacy.clip": self.privacy.clip, "privacy.noise": self.privacy.noise}
        federation["lr"] = max(self.federation.lrs)
        for key, value in ({f"federation.{k}": v for k, v in federation.items()} | options).items():
            if isinstance(value, float) and not 1e-45 < abs(value) < 3.4e38 and value != 0:
                raise ConfigError(
                    key=key,
                    value=value,
                    allowed="0, or from 1e-45 to 3.4e38",
                    hint="parameters are float32, which holds no other numbers",
                )
        if type(self.algorithm.at(1)) in ALGORITHMS.values():  # one's own may begin at infinity
            self._begins_finite()
        return self

    def _begins_finite(self) -> None:
        """Raise ConfigError if the algorithm's options make a number in its first vectors too large."""
        broken, w = [], torch.zeros(1)
        try:
            algorithm = self.algorithm.at(1)
            server = algorithm.init_server(w)
            start, shared = algorithm.broadcast(w, server)
            vectors = {**algorithm.init_client(w), **shared, **server, "start": start}
            broken = [name for name, vector in vectors.items() if not vector.isfinite().all()]
        except (RuntimeError, OverflowError) as error:
            broken = [one_line(error)]
        if broken:
            raise ConfigError(
                "with these options the first round has numbers too large for float32, which goes up to "
                f"3.4e38 ({broken[0]})",
                key="algorithm",
                value=ALGORITHM.dump(self.algorithm),
                hint="make them smaller",
            )

    @property
    def algorithm_name(self) -> str:
        return ALGORITHM.dump(self.algorithm)["name"]

    @property
    def has_own_algorithm(self) -> bool:
        """True if the method is not of the registry, whose methods the tests check."""
        return ALGORITHM.own_path(self.algorithm_name) is not None

    @property
    def hash(self) -> str:
        """Identity of the experiment: everything that its result depends on, and nothing else."""
        return config_hash(self._identity())

    def _identity(self) -> dict[str, Any]:
        content = identity(self.model_dump(mode="json"))
        if isinstance(self.model, FromFiles):
            content["model"] |= self.model.content()
        if self.model.init is not None:
            where = self.checkpoint.location
            content["model"]["init"] = warm_start.content_of(self.model.init, where)
        return content

    def code(self) -> dict[str, str]:
        """Return the digests of the user's own modules that this config names; see `provenance.code_of`."""
        dumped, fed = self.model_dump(), self.federation
        paths = [choice.own_path(dumped[choice.section]["name"]) or "" for choice in CHOICES]
        paths += [fed.lr_schedule, fed.sampling, fed.loss or ""]
        return code_of(path.partition(":")[0] for path in paths if ":" in path)

    def to_yaml(self) -> str:
        """Return the resolved config as a file that gives this experiment again."""
        return to_yaml(self.model_dump(mode="json"))

    def flat(self) -> dict[str, Any]:
        """Return the resolved config with dotted keys."""
        return _flatten(self.model_dump(mode="json"))

    def flat_identity(self) -> dict[str, Any]:
        """Return the part of it that `hash` is made of."""
        return _flatten(self._identity())


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Experiment:
    """Load a YAML file, a shipped config by its name, or a mapping, with `section.key=value` overrides.

    Raises ConfigError: one line that names the dotted key, the value and what is allowed.
    """
    is_file = isinstance(source, str | Path)
    config = layers.read(shipped.find(source), NAMED) if is_file else plain(source)
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
