"""Evaluation of a model on pieces of a split."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rayfl import seeds
from rayfl.training.batches import DeviceData
from rayfl.training.function import Function
from rayfl.training.process import seed_layers
from rayfl.training.transfers import DeviceBroadcast
from rayfl.training.units import EvaluationResult, Split

# On a CPU larger batches are no faster, and their maps are memory that the process keeps.
EVALUATION_BATCH = {"cpu": 125, "cuda": 500}


@dataclass(frozen=True)
class Evaluator:
    """Loss and scores of a model on samples of its splits."""

    function: Function
    splits: Mapping[Split, tuple[DeviceData, Tensor]]  # data, and the split's samples in them
    seed: int
    keeps_outputs: bool = False
    """True if results have the model's outputs, too."""

    @torch.no_grad()
    def __call__(
        self, broadcast: DeviceBroadcast, split: Split, first: int, last: int
    ) -> EvaluationResult:
        """Loss of the split's samples `first` to `last` at `broadcast.start`, and each one's score."""
        samples = self.splits[split][1][first:last]
        return self.on(*broadcast.own(), split, samples, first)

    def on(
        self, start: Tensor, buffers: Tensor, split: Split, samples: Tensor, key: int
    ) -> EvaluationResult:
        """The same of any samples of the split's data at any parameters; `key` seeds random layers."""
        self.function.model.eval()
        # Some models draw random numbers here too: the same ones, whoever evaluates these samples.
        seed_layers(seeds.integer(self.seed, "model", 0, key), start.device)
        tensors = self.function.parameters(start) | self.function.buffers(buffers)
        losses, scores, kept = [], [], []
        data, _ = self.splits[split]
        for indices in samples.split(EVALUATION_BATCH[start.device.type]):
            inputs = self.function.inputs(data.preprocess(indices, None, None))
            outputs = self.function(tensors, inputs).to(start.dtype)
            targets = data.y[indices]
            losses.append(self.function.task.summed(outputs, targets))
            scores.append(self.function.task.scores(outputs, targets))
            if self.keeps_outputs:
                kept.append(outputs)
        # Read at the end: a GPU goes on meanwhile.
        loss = sum(torch.stack(losses).tolist())
        every = torch.cat(kept).cpu().numpy() if kept else None
        return EvaluationResult(loss, torch.cat(scores).cpu().numpy(), every)
