"""The section of a config about differential privacy at the level of clients."""

from typing import Annotated

from pydantic import Field

from rayfl.config.sections import Federation, Section
from rayfl.errors import ConfigError
from rayfl.federation.privacy import PrivateRounds, epsilons
from rayfl.text import shown
from rayfl.training.privacy import At, GaussianMechanism

# Values of options of `federation`, and why there are no others.
_ALLOWED = {
    "weighting": (
        ("uniform",),
        "a client of many samples would move the mean by more than its noise hides",
    ),
    "sampling": (
        ("uniform", "bernoulli"),
        "clients that are drawn with probabilities of their own have no epsilon in common",
    ),
    "client_dropout": (
        (0.0,),
        "a lost client takes its share of the noise with it, and no account knows that one always comes "
        "back; lower federation.cohort instead",
    ),
}


class Privacy(Section):
    """Differential privacy at the level of clients: clipped uploads, and Gaussian noise on their sum."""

    clip: float = Field(gt=0)
    """L2 norm of all that a client uploads in a round, at most"""
    noise: float = Field(ge=0, le=1000)
    """z, the noise multiplier: the sum's noise has the standard deviation z clip; 0: clipping alone"""
    at: At = "server"
    """who adds it: the server once, or the clients, a share each"""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """probability that epsilon leaves out; null: 1 / N"""

    def check(self, federation: Federation) -> None:
        """Raise ConfigError for what leaves the mean over a cohort without a bound that holds."""
        for name, (allowed, hint) in _ALLOWED.items():
            if (value := getattr(federation, name)) not in allowed:
                raise ConfigError(
                    key=f"federation.{name}",
                    value=value,
                    allowed=f"{' or '.join(map(shown, allowed))} under privacy",
                    hint=hint,
                )
        if self.at == "clients" and federation.sampling == "bernoulli":
            raise ConfigError(
                "shares of the noise add up to the whole only in cohorts of a known size",
                key="privacy.at",
                value=self.at,
                hint="set federation.sampling=uniform, or privacy.at=server",
                keys=("federation.sampling",),
            )

    def epsilons(self, federation: Federation) -> tuple[float, ...]:
        """Epsilon after each round, empty without noise; ConfigError if its package is not installed."""
        return epsilons(
            self.noise,
            federation.sampling,
            federation.participation,
            federation.cohort_size,
            federation.clients,
            federation.rounds,
            self.delta_of(federation),
        )

    def delta_of(self, federation: Federation) -> float:
        """The delta that epsilon holds at."""
        if self.delta is None and federation.clients == 1:
            raise ConfigError(
                "1 / N is no delta for one client",
                key="privacy.delta",
                value=None,
                hint="give one below 1",
                keys=("federation.clients",),
            )
        return 1 / federation.clients if self.delta is None else self.delta

    def rounds(self, seed: int, federation: Federation, steps: float) -> PrivateRounds:
        """The private rounds of an experiment; `steps`: mean of K_i over all clients."""
        f, cohort = federation, float(federation.cohort_size)
        mechanism = GaussianMechanism(
            seed=seed,
            clip=self.clip,
            noise=self.noise,
            at=self.at,
            cohort=f.participation * f.clients if f.sampling == "bernoulli" else cohort,
        )
        return PrivateRounds(mechanism=mechanism, steps=steps, epsilons=self.epsilons(f))
