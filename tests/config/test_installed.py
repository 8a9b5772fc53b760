"""Parts that an installed package offers as entry points: by name, listed, and checked as own code is."""

import logging
import sys

import pytest
from typer.testing import CliRunner

import rayfl
from rayfl import load_config
from rayfl.cli.main import app
from rayfl.config import installed, layers
from rayfl.config.named import ALGORITHM
from rayfl.errors import ConfigError

POINTS = """
[rayfl.algorithms]
fedavg = offered_parts:Half
half = offered_parts:Half
impure = offered_parts:Impure
broken = offered_parts:Nothing
[rayfl.models]
linear = offered_parts:linear
flat = offered_parts:Flat
[rayfl.data]
tiny = offered_parts:Tiny
[rayfl.partitions]
turns = offered_parts:Turns
"""
PARTS = '''
import random
from dataclasses import dataclass

import numpy as np
from torch import nn

from rayfl.algorithms import Algorithm
from rayfl.data.datasets import Source, from_arrays
from rayfl.data.partition import Scheme
from rayfl.models import Model


@dataclass(frozen=True, kw_only=True)
class Half(Algorithm):
    """FedAvg with half of each gradient."""
    paper = "Nobody, 2026"
    part: float = 0.5

    def local_step(self, x, memory, grad, ctx):
        return self.part * grad(x), memory


@dataclass(frozen=True, kw_only=True)
class Impure(Algorithm):
    def local_step(self, x, memory, grad, ctx):
        return grad(x) * random.random(), memory


def linear(num_classes, bias=True):
    """One linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes, bias=bias))


@dataclass(frozen=True, kw_only=True)
class Flat(Model):
    """One linear layer, too."""
    def build(self, sample_shape, num_classes):
        return linear(num_classes)


@dataclass(frozen=True, kw_only=True)
class Tiny(Source):
    """Noise of two classes."""
    def read(self):
        x = np.random.default_rng(0).normal(size=(90, 64)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int64)
        return from_arrays("tiny", (x[:60], y[:60]), (x[60:], y[60:]))


@dataclass(frozen=True, kw_only=True)
class Turns(Scheme):
    """Samples in turn."""
    def assign(self, labels, clients, rng, groups=None):
        return np.arange(len(labels)) % clients
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package, as pip leaves it, that offers one of each."""
    about = tmp_path / "offered_parts-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: offered-parts\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    (tmp_path / "offered_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "offered_parts", raising=False)
    installed.offered.cache_clear()
    layers.say_once.cache_clear()
    yield
    installed.offered.cache_clear()


def test_its_parts_are_to_be_had_by_name(package, small, caplog):
    names = {"algorithm": "half", "model": "linear", "data": "tiny", "partition": "turns"}
    config = load_config(small | {key: {"name": name} for key, name in names.items()})
    dumped = config.model_dump(mode="json")
    assert {key: dumped[key]["name"] for key in names} == names
    assert load_config(dumped).hash == config.hash
    assert "offered_parts" in config.code()  # it is no more than a module on the path
    assert rayfl.run(config, local=True).history["train/loss"].notna().all()
    classes = small | {"model": {"name": "flat"}, "algorithm": {"name": "offered_parts:Half"}}
    config = load_config(classes)
    assert config.algorithm_name == "half"
    assert rayfl.run(config, local=True).summary["rounds"] == 3


def test_a_method_is_checked_as_one_by_import_path_is(package, small):
    with pytest.raises(ConfigError, match=r"algorithm\.name = 'impure'"):
        rayfl.run(load_config(small | {"algorithm": {"name": "impure"}}), local=True)


def test_rayfls_own_names_stay_with_a_warning(package, small, caplog):
    with caplog.at_level(logging.WARNING):
        config = load_config(small | {"algorithm": {"name": "fedavg"}})
    assert not config.has_own_algorithm
    assert "algorithm.name=fedavg is rayfl's own; offered_parts:Half" in caplog.text
    assert "offered_parts" not in sys.modules  # nothing of it is used


def test_unknown_and_broken_ones_are_one_error(package, small):
    with pytest.raises(ConfigError, match=r"did you mean 'half'.*allowed: .*half, igfl"):
        load_config(small | {"algorithm": {"name": "halve"}})
    with pytest.raises(ConfigError, match=r"algorithm\.name = .*has no 'Nothing'"):
        load_config(small | {"algorithm": {"name": "broken"}})
    with pytest.raises(ConfigError, match=r"model\.name = 'linear': cannot be called .*width"):
        load_config(small | {"model": {"name": "linear", "width": 3}})


def test_lists_have_them(package):
    for command, words in (
        ("algorithms", ["half  Nobody, 2026", "algorithm.part = 0.5", "broken  algorithm.name = "]),
        ("models", ["linear  One linear layer."]),
        ("datasets", ["tiny  Noise of two classes."]),
        ("partitions", ["turns  Samples in turn."]),
    ):
        out = " ".join(CliRunner().invoke(app, [command]).output.split(" "))
        for word in words:
            assert word in out


def test_what_has_no_group_has_no_offers():
    assert ALGORITHM.own_path("fedavg") is None
    assert installed.offered("scheduler", frozenset()) == {}
