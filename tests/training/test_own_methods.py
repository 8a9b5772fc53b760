"""The check of one's own method: what keeps the rules passes, what breaks one is a line that says which."""

import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import ROOT, each, rarely
from own_methods import RIGHT, WRONG

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.base import ExperimentInfo, TensorInfo
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.prepare import prepare
from rayfl.training import contract
from rayfl.training.engine import Engine
from rayfl.training.units import Broadcast, WorkUnit


def info(*shapes: tuple[int, ...], clients: int = 10) -> ExperimentInfo:
    sizes = [math.prod(shape) for shape in shapes]
    tensors = (
        TensorInfo(f"{i}.weight", torch.Size(shape), sum(sizes[:i]))
        for i, shape in enumerate(shapes)
    )
    return ExperimentInfo((7,) * clients, 2, None, 4, tuple(tensors))


SMALL = info((16, 64), (4, 4, 2, 2), (10,))
LARGE = info((80, 100), (100,), (10, 8, 5, 5), ())
EXPONENTIAL = [0.1, 0.09, 0.08]


def check(algorithm: Algorithm, info: ExperimentInfo = SMALL, lrs=EXPONENTIAL) -> None:
    contract.check(algorithm, "mine:Method", info, 0.5, lrs)


@pytest.mark.parametrize("info", [LARGE, *rarely([info((1,), (1,), clients=2)])])
@pytest.mark.parametrize(
    "algorithm", [*rarely(ALGORITHMS.values()), *RIGHT], ids=lambda a: a.__name__
)
def test_a_method_that_keeps_the_rules_passes(algorithm, info):
    check(algorithm(), info)


def test_a_head_is_not_the_whole_model():
    with pytest.raises(
        ConfigError, match=r"all of their names begin with '0\.'.*set algorithm\.head"
    ):
        check(ALGORITHMS["fedper"](), info((1,)))


@pytest.mark.parametrize("lrs", [[1.0, 1e-3], *rarely([[1e-8], [100.0]])])
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
    size = sum(t.size for t in LARGE.tensors)
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
        offset = 0
        for tensor, larger in zip(info.tensors, LARGE.tensors, strict=True):
            assert (tensor.name, tensor.offset) == (larger.name, offset)
            assert len(tensor.shape) == len(larger.shape)
            assert tensor.view(torch.zeros(2, size)).shape == (2, *tensor.shape)
            offset += tensor.size
        assert offset == size <= 4003
        assert info.clients == LARGE.clients
        assert info.samples[0] != info.samples[1]
        assert replace(info, tensors=()) == replace(LARGE, tensors=())


@each(precision=["float32", "bfloat16"])  # in stacks, and client by client
def test_a_client_knows_its_number_of_samples(precision, small):
    @dataclass(frozen=True, kw_only=True)
    class Sends(Algorithm):
        def upload(self, delta, memory, ctx):
            return {"delta": delta, "n": ctx.samples, "squares": ctx.samples**2}, memory

    config = {**small, "algorithm": {"name": "fedavg"}}
    config["partition"] = {"name": "quantity"}
    config["federation"] = {**small["federation"], "precision": precision}
    prepared = prepare(load_config(config))
    sizes = prepared.partition.sizes[[0, 2, 3]]
    assert len({*sizes}) > 1
    engine = Engine(
        *(prepared.model, Sends(), prepared.data, prepared.partition, prepared.settings), "cpu"
    )
    w, buffers = (value.numpy() for value in engine.layout.flatten(engine.model))
    result, _ = engine.train(WorkUnit(1, (0, 2, 3), 0.1), Broadcast(w, {}, buffers), [None] * 3)
    assert result.sums["n"].tolist() == [sizes.sum()]
    assert result.sums["squares"].tolist() == [(sizes**2).sum()]


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
