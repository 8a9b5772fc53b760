"""Functions of the user's own that the server calls after each round, with the global model in hand."""

import logging
import math
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rayfl import models
from rayfl.errors import CallbackError, RunError
from rayfl.text import shown
from rayfl.training.flat import Layout
from rayfl.training.travel import unpacked

logger = logging.getLogger(__name__)


class Round:
    """A finished round, as callbacks see it; they may keep it and change what they get from it."""

    def __init__(
        self,
        number: int,
        metrics: Mapping[str, float],
        model: bytes,
        flat: tuple[Tensor, Tensor],
    ):
        """`model`: as `packed`; `flat`: w `[P]` and the buffers `[Q]` after the round."""
        self.number = number
        """From 1."""
        self.metrics = dict(metrics)
        """By name, as far as they are known: the round's evaluation runs beside the next round."""
        self._model, self._flat = model, flat

    def model(self) -> nn.Module:
        """Return the global model in evaluation mode, a copy on the CPU."""
        model = unpacked(self._model)
        for parameter in model.parameters():
            if parameter.requires_grad:  # of one number, see `packed`
                parameter.data = torch.empty(parameter.shape)
        Layout(model).load(model, *self._flat)
        return model.eval()

    def state_dict(self) -> dict[str, Tensor]:
        """Return weights and buffers for `load_state_dict` of the plain model, adapters merged."""
        return models.plain_state_dict(self.model())


Callback = Callable[[Round], Mapping[str, float] | None]


@dataclass(frozen=True, eq=False)
class Callbacks:
    """The functions of an experiment, and its model."""

    functions: tuple[tuple[str, Callback], ...]
    """Each with its import path, in the order of their calls."""
    model: bytes
    """The model, as `packed` has it."""

    def call(
        self, number: int, metrics: Mapping[str, float], flat: tuple[Tensor, Tensor]
    ) -> dict[str, float]:
        """Call each after a round; what they return, as metrics `own/NAME`.

        The arguments are those of `Round`. Raises CallbackError for what a function raises, and RunError for
        what it returns if that is no number by name. A number that is not finite is left out with a warning.
        """
        found: dict[str, float] = {}
        for path, function in self.functions:
            try:
                returned = function(Round(number, metrics, self.model, flat))
            except Exception as error:
                own = error.__traceback__ and error.__traceback__.tb_next  # without this file
                lines = traceback.format_exception(type(error), error, own)
                raise CallbackError(number, path, "".join(lines)) from error
            for name, value in _numbers(number, path, returned).items():
                if math.isfinite(value):
                    found[f"own/{name}"] = value
                else:
                    logger.warning(
                        "round %d: %s of %s is %s, and is left out", number, name, path, value
                    )
        return found


def _numbers(round: int, path: str, returned: Any) -> dict[str, float]:
    try:
        found = {name: float(value) for name, value in (returned or {}).items()}
        if all(re.fullmatch(r"[A-Za-z0-9_]+", name) for name in found):
            return found
    except (AttributeError, TypeError, ValueError):
        pass
    raise RunError(
        f"round {round}: it returned {shown(returned)}",
        key="callbacks",
        value=path,
        hint="return None, or numbers by names of letters, digits and _, as in {'norm': 1.5}",
    )
