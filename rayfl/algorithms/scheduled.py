"""Hyper-parameters that change over the rounds."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from rayfl.algorithms.base import Algorithm, Vectors


class Ramp(NamedTuple):
    """A number that goes evenly from one value to another, and then keeps a third."""

    first: float
    """In round 1."""
    last: float
    """In round `rounds`."""
    rounds: int
    then: float
    """After that."""

    def at(self, round: int) -> float:
        """The value in a round, from 1."""
        if round > self.rounds:
            return self.then
        if round == self.rounds > 1:
            return self.last
        share = (round - 1) / max(1, self.rounds - 1)
        return self.first + share * (self.last - self.first)


@dataclass(frozen=True, kw_only=True)
class Scheduled(Algorithm):
    """A method some of whose hyper-parameters follow ramps. What trains in a round is `at(round)`."""

    method: Algorithm
    """With the values of the first round."""
    ramps: Mapping[str, Ramp] = field(hash=False)
    """By the name of the hyper-parameter."""

    @property
    def turns(self) -> list[int]:
        """Rounds between which all values lie: the first, each ramp's last, and the one after it."""
        return sorted({1, *(ramp.rounds + i for ramp in self.ramps.values() for i in (0, 1))})

    def at(self, round: int) -> Algorithm:
        values = {name: ramp.at(round) for name, ramp in self.ramps.items()}
        return dataclasses.replace(self.method, **values)

    def init_server(self, w: Tensor) -> Vectors:
        return self.method.init_server(w)

    def init_client(self, w: Tensor) -> Vectors:
        return self.method.init_client(w)

    def _of_a_round(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "this method differs from round to round: take that of a round, `at(round)`"
        )

    broadcast = client_start = personal = local_step = _of_a_round
    upload = upload_bytes = server_step = global_momentum = _of_a_round
