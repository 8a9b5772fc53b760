"""The check of one's own method: what keeps the rules passes, what breaks one is a line that says which."""

import re
from dataclasses import dataclass

import pytest
import torch
from conftest import ROOT
from own_methods import RIGHT, WRONG

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.base import ExperimentInfo
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.prepare import prepare
from rayfl.training import contract

SMALL = ExperimentInfo(10, 3.5, (16 * 64, 16 * 4, 10), torch.tensor([0, 4, 8]))
LARGE = ExperimentInfo(10, 3.5, (8_000, 100, 2_000, 1), torch.tensor([0, 9, 18, 27]))
EXPONENTIAL = [0.1, 0.09, 0.08]


def check(algorithm: Algorithm, info: ExperimentInfo = SMALL, lrs=EXPONENTIAL) -> None:
    contract.check(algorithm, "mine:Method", info, 0.5, lrs)


@pytest.mark.parametrize("info", [LARGE, ExperimentInfo(2, 1.0, (1,), torch.tensor([0]))])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS.values(), *RIGHT], ids=lambda a: a.__name__)
def test_a_method_that_keeps_the_rules_passes(algorithm, info):
    check(algorithm(), info)


@pytest.mark.parametrize("lrs", [[1e-8], [1.0, 1e-3], [100.0]])
@pytest.mark.parametrize("algorithm", RIGHT, ids=lambda a: a.__name__)
def test_whatever_the_learning_rates(algorithm, lrs):
    check(algorithm(), lrs=lrs)


def test_the_method_of_the_readme_passes():
    found = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = (code for code in found if "class MySAM" in code)
    module = {"__name__": "mymethod"}
    exec(block, module)
    check(module["MySAM"]())


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_rule_is_one_line(name):
    algorithm, words = WRONG[name]
    with pytest.raises(ConfigError, match=words) as raised:
        check(algorithm)
    line = str(raised.value)
    assert line.startswith("algorithm.name = 'mine:Method': ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("norm_of_the_stack", "mixes clients"),
        ("randn", "random generator of the whole process"),
        ("misspelt", "raises KeyError: 'momentum'"),
        ("double", r"must be float32 \[2, 10101\], as x"),
    ],
)
def test_a_broken_rule_is_found_with_a_larger_model(name, words):
    with pytest.raises(ConfigError, match=words):
        check(WRONG[name][0], LARGE)


@dataclass(frozen=True, kw_only=True)
class Masked(Algorithm):
    """Made for a model of just so many parameters."""

    size: int

    def local_step(self, x, memory, grad, ctx):
        return grad(x) * torch.ones(self.size), memory


def test_a_method_for_one_size_is_checked_with_that():
    size = sum(LARGE.sizes)
    check(Masked(size=size), LARGE)
    with pytest.raises(ConfigError, match="local_step raises RuntimeError: The size of tensor"):
        check(Masked(size=size - 1), LARGE)


def test_the_experiment_of_a_shorter_vector_holds_together():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Looks(Algorithm):
        def local_step(self, x, memory, grad, ctx):
            seen.append((x.shape[-1], ctx.experiment))
            return grad(x), memory

    check(Looks(), LARGE)
    for size, info in seen:
        assert sum(info.sizes) == size <= 4003
        assert len(info.sizes) == len(info.first) == len(info.first.unique()) == 4
        assert info.first.max() < size
        assert (info.clients, info.nominal_steps) == (10, 3.5)


def test_nothing_of_the_process_is_changed():
    before = torch.get_rng_state()
    check(RIGHT[0]())
    assert torch.equal(torch.get_rng_state(), before)


def test_an_experiment_with_a_wrong_method_is_not_prepared(small, monkeypatch):
    small["algorithm"] = {"name": "own_methods:Counts"}
    with pytest.raises(ConfigError, match="'own_methods:Counts': local_step"):
        prepare(load_config(small))
    small["algorithm"] = {"name": "noisy:Noisy"}
    prepare(load_config(small))
    small["algorithm"] = {"name": "fedwmsam"}
    monkeypatch.setattr(contract, "check", None)  # methods of the registry are not checked
    prepare(load_config(small))
