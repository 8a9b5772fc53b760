"""The sections of a config about what is measured of the global models; none of them changes a result."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rayfl.config.sections import Positive, Section
from rayfl.errors import ConfigError
from rayfl.federation.averaging import Rule
from rayfl.flatness.measures import Effort
from rayfl.flatness.question import Question
from rayfl.text import printable

Distance = Annotated[float, Field(gt=0)]
# Names that metrics of rayfl's have behind `test/` or `average/`, or begin with there.
_TAKEN = ("loss", "accuracy", "perplexity", "r2", "class", "domain", "domain_mean", "domain_worst")
_ASKED = Question()  # has the defaults of what is measured


class Averaging(Section):
    """An average of the global model over the rounds: one of last, ema and swa."""

    last: Positive | None = None
    """W: the mean of the last W global models, which the server and each checkpoint keep"""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """decay of a moving average"""
    swa: Positive | Annotated[float, Field(gt=0, lt=1)] | None = None
    """stochastic weight averaging from this round, or from this share of all rounds"""
    every: Positive | None = None
    """rounds between two models of swa; null: 1"""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [k for k in ("last", "ema", "swa") if getattr(self, k) is not None]
        if len(given) != 1 or (self.every and self.swa is None):
            raise ConfigError(
                key="evaluation.average",
                value=self.model_dump(exclude_none=True),
                allowed="one of {last: W}, {ema: decay} and {swa: round, every: rounds}",
                hint="give one of the three, or null",
            )
        return self

    def rule(self, rounds: int) -> Rule:
        """The rule for a run of so many rounds."""
        if self.last is not None:
            return Rule("last", window=self.last)
        if self.ema is not None:
            return Rule("ema", decay=self.ema)
        assert self.swa is not None
        first = max(1, round(self.swa * rounds)) if isinstance(self.swa, float) else self.swa
        return Rule("swa", first=first, every=self.every or 1)


class Personalised(Section):
    """Evaluation of clients' own models on their own distributions."""

    steps: int = Field(default=5, ge=0)
    """local steps from the global model, or from the one that the method keeps for the client"""
    every: Positive | None = None
    """rounds between two; null: after the last round alone"""
    clients: Positive = 100
    """at most so many of the clients, drawn once"""
    samples: Positive = 500
    """test samples of each, at most"""


class Evaluation(Section):
    """Metrics beside the global model's loss and accuracy on the test set."""

    per_class: bool = False
    """accuracy of each class"""
    per_client: bool = True
    """accuracy on the clients' own distributions: mean, quantiles, worst"""
    personalised: Personalised | None = None
    """accuracy of clients' own models (personal/...); null: none, but for methods that keep such models;
    centralised training has none"""
    average: Averaging | None = None
    """an average of the global models, whose metrics are average/accuracy and average/loss; null: none"""
    metrics: Mapping[str, str] = Field(default_factory=dict)
    """metrics of your own: a name, and package.module:function, which is called with outputs [n, classes] and
    targets [n] of the whole test set, or of what data.validation holds out, and returns a number; NAME is
    recorded as test/NAME and validation/NAME"""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for name, path in self.metrics.items():
            if (
                not re.fullmatch(r"[A-Za-z0-9_]+", name)
                or name in _TAKEN
                or name.startswith("validation_")
            ):
                raise ConfigError(
                    "a name has letters, digits and _, does not begin with validation_, and is none of "
                    f"rayfl's own: {', '.join(_TAKEN)}",
                    key=f"evaluation.metrics.{printable(name)}",
                    value=path,
                    hint="take another name",
                )
        return self


class Diagnostics(Section):
    """The flatness of the global model while it is trained, as `rayfl flatness` measures it. It changes no
    result."""

    every: Positive | None = None
    """rounds between two measurements; the last round's too; null: none"""
    measures: tuple[Literal["gap", "hessian", "alignment", "variance"], ...] = ("gap",)
    """what is measured"""
    splits: tuple[Literal["train", "test"], ...] = ("train",)
    """splits whose loss gap and hessian are about"""
    samples: int = Field(default=_ASKED.samples, gt=0)
    """samples of each split and of each client, at most"""
    clients: int = Field(default=_ASKED.clients, gt=0)
    """clients of the next round that are trained again for alignment and variance, at most"""
    rho: tuple[Distance, ...] = _ASKED.effort.rhos
    """distances of the gaps"""
    scale_free_rho: tuple[Distance, ...] = _ASKED.effort.scale_free_rhos
    """distances of the scale-free gaps, in parts of |w|"""
    draws: int = Field(default=_ASKED.effort.draws, ge=2)
    """number of random draws: of noise, and of vectors for the trace"""
    lanczos: int = Field(default=_ASKED.effort.lanczos_steps, gt=0)
    """steps for the eigenvalues, at most"""

    @property
    def question(self) -> Question:
        effort = Effort(
            rhos=self.rho,
            scale_free_rhos=self.scale_free_rho,
            draws=self.draws,
            lanczos_steps=self.lanczos,
        )
        return Question(
            measures=self.measures,
            splits=self.splits,
            samples=self.samples,
            clients=self.clients,
            effort=effort,
        )
