"""Two callbacks: save the weights every ten rounds, and count the weights whose sign has changed.

Run them from the folder of this file:

    rayfl run quickstart callbacks='[watch:save_weights, watch:sign_changes]'
"""

import torch
from torch import Tensor

from rayfl.federation.callbacks import Round

EVERY = 10
_before: list[tuple[int, dict[str, Tensor]]] = [(0, {})]


def save_weights(round: Round) -> None:
    """Write `weights-10.pt` and so on into the working directory; torch.load reads them."""
    if round.number % EVERY == 0:
        torch.save(round.state_dict(), f"weights-{round.number}.pt")


def sign_changes(round: Round) -> dict[str, float]:
    """Return the share of all weights whose sign is not that of the round before: `own/sign_changes`.

    `_before` is the memory of this process alone: a run that goes on from a checkpoint has nothing to
    compare its first round with.
    """
    weights = round.state_dict()
    (number, before), _before[0] = _before[0], (round.number, weights)
    if not before or number != round.number - 1:
        return {}
    changed = [(value.sign() != before[name].sign()).flatten() for name, value in weights.items()]
    return {"sign_changes": torch.cat(changed).double().mean().item()}
