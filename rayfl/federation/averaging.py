"""Averages of the global model over the rounds, which are evaluated beside it and change nothing.

Sources: `last`, the mean of a window of global models, is the model that FedGloSS reports (Caldarola et al.,
CVPR 2025, arXiv:2412.03752); `swa` is Stochastic Weight Averaging on the server (Caldarola et al.,
"Improving Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022, arXiv:2203.11834); `ema`
is the moving average that the clients of FedGMT follow (Li et al., ICML 2025).

Buffers, such as the running statistics of batch normalisation, are averaged as the parameters are.

Shapes: P parameters, Q entries of float buffers.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rayfl.errors import CheckpointError
from rayfl.storage.snapshot import Arrays


@dataclass(frozen=True)
class Rule:
    """Rule that says which global models are averaged, and how."""

    kind: Literal["last", "swa", "ema"]
    window: int = 1
    """W, of `last`: the mean of the last W global models, of fewer before there are so many."""
    first: int = 1
    """Round whose model is the first of `swa`, from 1."""
    every: int = 1
    """Rounds between two models of `swa`."""
    decay: float = 0.0
    """`ema`: e <- decay e + (1 - decay) w after each round; e begins at the first global model."""

    def takes(self, round: int) -> bool:
        """True if the model after this round is one of those that are averaged."""
        return round >= self.first and (round - self.first) % self.every == 0

    def holds(self, round: int) -> list[int]:
        """Names of what is kept after this round: the rounds of a window, or 0 for one running mean."""
        if self.kind == "last":
            return list(range(max(1, round - self.window + 1), round + 1))
        return [0] if round >= self.first else []

    @property
    def numbers(self) -> np.ndarray:
        """The numbers that two running means of one kind differ by."""
        return np.array([self.first, self.every, self.decay])

    def check(self, kept: Arrays, round: int) -> None:
        """Raise CheckpointError if a checkpoint of this round lacks what this average goes on from."""
        there = all(f"{self.kind}/{name}" in kept for name in self.holds(round))
        if there and self.kind != "last" and round >= self.first:
            there = np.array_equal(kept["rule"], self.numbers)
        if not there:
            raise CheckpointError(
                "evaluation.average: the checkpoint was written without it, or with another one, and what it "
                "averages is gone; leave it as it was, or begin the run anew"
            )


class Average:
    """An average of global models so far."""

    def __init__(self, rule: Rule, w: Tensor, buffers: Tensor):
        """`w [P]` and `buffers [Q]` before the first round."""
        self.rule, self._size = rule, len(w)
        # Parameters and buffers in one vector `[P + Q]`, by the names of `Rule.holds`.
        self._held = {0: torch.cat([w, buffers])} if rule.kind == "ema" else {}

    def add(self, round: int, w: Tensor, buffers: Tensor) -> None:
        """Take in the model after a round."""
        if not self.rule.takes(round):
            return
        model = torch.cat([w, buffers])
        match self.rule.kind:
            case "last":
                self._held[round] = model
                self._held = {name: self._held[name] for name in self.rule.holds(round)}
            case "swa":
                mean = self._held.setdefault(0, torch.zeros_like(model))
                count = (round - self.rule.first) // self.rule.every + 1
                mean.add_(model.sub_(mean), alpha=1 / count)
            case "ema":
                self._held[0].mul_(self.rule.decay).add_(model, alpha=1 - self.rule.decay)

    def model(self) -> tuple[Tensor, Tensor] | None:
        """Parameters `[P]` and buffers `[Q]`; None before the first model."""
        if not self._held:
            return None
        first, *others = (self._held[name] for name in sorted(self._held))
        total = first.clone()
        for model in others:
            total += model
        mean = total.div_(1 + len(others))
        return mean[: self._size], mean[self._size :]

    def arrays(self) -> Arrays:
        """The arrays that a checkpoint keeps of it."""
        held = {f"{self.rule.kind}/{name}": v.numpy() for name, v in self._held.items()}
        return held | {"rule": self.rule.numbers}

    def restore(self, kept: Arrays, round: int) -> None:
        """Go on from what a checkpoint of this round kept; CheckpointError if that was another average."""
        self.rule.check(kept, round)
        self._held |= {
            name: torch.tensor(kept[f"{self.rule.kind}/{name}"]) for name in self.rule.holds(round)
        }
