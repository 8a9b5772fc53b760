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
from rayfl.storage.checkpoint import Arrays


@dataclass(frozen=True)
class Rule:
    """What is averaged."""

    kind: Literal["last", "swa", "ema"]
    window: int = 1
    """W, of `last`: the mean of the last W global models, of fewer before there are so many."""
    first: int = 1
    """Of `swa`: the round whose model is the first, from 1."""
    every: int = 1
    """Of `swa`: rounds between two models."""
    decay: float = 0.0
    """Of `ema`: e <- decay e + (1 - decay) w after each round; e begins at the first global model."""

    def takes(self, round: int) -> bool:
        """True if the model after this round is one of those that are averaged."""
        return self.kind != "swa" or (
            round >= self.first and (round - self.first) % self.every == 0
        )


class Average:
    """An average of global models so far."""

    def __init__(self, rule: Rule, w: Tensor, buffers: Tensor):
        """`w [P]` and `buffers [Q]` before the first round."""
        self.rule, self._size = rule, len(w)
        # Parameters and buffers in one vector `[P + Q]`: by round for `last`, else one.
        self._held: dict[int, Tensor] = {}
        if rule.kind == "ema":
            self._held[0] = torch.cat([w, buffers])
        self._count = 0  # models that have gone into it

    def add(self, round: int, w: Tensor, buffers: Tensor) -> None:
        """Take in the model after a round."""
        if not self.rule.takes(round):
            return
        model = torch.cat([w, buffers])
        self._count += 1
        match self.rule.kind:
            case "last":
                self._held[round] = model
                for old in [r for r in self._held if r <= round - self.rule.window]:
                    del self._held[old]
            case "swa":
                mean = self._held.setdefault(0, torch.zeros_like(model))
                mean.add_(model.sub_(mean), alpha=1 / self._count)
            case "ema":
                self._held[0].mul_(self.rule.decay).add_(model, alpha=1 - self.rule.decay)

    def model(self) -> tuple[Tensor, Tensor] | None:
        """Parameters `[P]` and buffers `[Q]`; None before the first model."""
        if not self._count:
            return None
        models = [self._held[round] for round in sorted(self._held)]
        total = models[0].clone()
        for model in models[1:]:
            total += model
        mean = total.div_(len(models))
        return mean[: self._size], mean[self._size :]

    def arrays(self) -> Arrays:
        """What a checkpoint keeps of it."""
        held = {f"{self.rule.kind}/{round}": v.numpy() for round, v in self._held.items()}
        return held | {"count": np.array([self._count], np.float32), "rule": self._numbers}

    def restore(self, arrays: Arrays, round: int) -> None:
        """Go on from what a checkpoint of this round kept; CheckpointError if it kept another average."""
        if not any(self.rule.takes(r) for r in range(1, round + 1)):
            return
        kind = self.rule.kind
        kept = {name: v for name, v in arrays.items() if name.startswith(f"{kind}/")}
        window = range(max(1, round - self.rule.window + 1), round + 1)
        same = np.array_equal(arrays.get("rule", ()), self._numbers)
        complete = all(f"last/{r}" in kept for r in window) if kind == "last" else same
        if not (kept and complete):
            raise CheckpointError(
                "evaluation.average: the checkpoint was written without it, or with another one, and what it "
                "averages is gone; leave it as it was, or begin the run anew"
            )
        self._held = {
            int(name.partition("/")[2]): torch.tensor(value)
            for name, value in kept.items()
            if kind != "last" or int(name.partition("/")[2]) in window
        }
        self._count = int(arrays["count"][0])

    @property
    def _numbers(self) -> np.ndarray:
        """What the averages of two rules of one kind differ by, but for the window."""
        return np.array([self.rule.first, self.rule.every, self.rule.decay])
