"""Stacks of clients on the lanes of one device."""

from dataclasses import replace

import torch
from torch import nn

from rayfl.config.schema import load_config
from rayfl.prepare import prepare
from rayfl.training.engine import Engine
from rayfl.training.units import Broadcast, WorkUnit


class Drops(nn.Module):
    """Drops the same hidden units for all samples of a batch, whose order is no matter then."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(64, 16), nn.Linear(16, 10), nn.Dropout(0.5)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)) * self.drop(torch.ones(16)))


def test_layers_that_draw_draw_anew_in_each_round_and_the_same_when_a_unit_runs_again(small):
    """One step on all samples of a client: rounds differ in the layer's draws, and else in rounding."""
    small["algorithm"] = {"name": "fedavg"}
    small["federation"] |= {"batch_size": 1000, "local_epochs": None, "local_steps": 1}
    prepared = prepare(load_config(small))
    shortcuts = replace(prepared.settings.shortcuts, dense=False)
    settings = replace(prepared.settings, shortcuts=shortcuts)
    torch.manual_seed(0)
    engine = Engine(
        Drops(), prepared.config.algorithm, prepared.data, prepared.partition, settings, "cpu"
    )
    w, buffers = (value.numpy() for value in engine.layout.flatten(engine.model))

    def delta(round):
        unit = WorkUnit(round, (0,), 0.1)
        result, _ = engine.train(unit, Broadcast(w, {}, buffers), [None])
        return torch.tensor(result.sums["delta"])

    first, second, again = delta(1), delta(2), delta(1)
    assert torch.equal(first, again)
    assert (first - second).norm() > 0.1 * first.norm()
    engine.model.drop.p = 0.0
    first, second = delta(1), delta(2)
    assert (first - second).norm() < 1e-4 * first.norm()
