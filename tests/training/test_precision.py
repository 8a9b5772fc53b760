"""The arithmetic of local steps: what it touches, and what it leaves alone."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.models.lenet import LeNet5
from rayfl.prepare import prepare
from rayfl.training.batches import Minibatch
from rayfl.training.engine import Engine
from rayfl.training.flat import Layout, views
from rayfl.training.function import Function
from rayfl.training.gradients import PerClientGradient
from rayfl.training.precision import allow_tf32, in_effect, local_arithmetic
from rayfl.training.process import configure_process
from rayfl.training.units import Broadcast, WorkUnit

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def trained(small, precision):
    """The engine after one work unit, and what it brought back."""
    small["federation"] |= {"precision": precision, "local_steps": 2, "local_epochs": None}
    prepared = prepare(load_config(small))
    w, buffers = (v.numpy() for v in Layout(prepared.model).flatten(prepared.model))
    algorithm, partition = prepared.config.algorithm, prepared.partition
    engine = Engine(prepared.model, algorithm, prepared.data, partition, prepared.settings, "cpu")
    start, shared = algorithm.broadcast(torch.tensor(w), algorithm.init_server(torch.tensor(w)))
    arrays = {name: value.numpy() for name, value in shared.items()}
    broadcast = Broadcast(start.numpy(), arrays, buffers)
    result, _ = engine.train(WorkUnit(1, (0, 1), 0.1), broadcast, [None, None])
    return engine, result


def test_a_bfloat16_gradient_is_that_of_an_autocast_forward_pass_in_float32_vectors():
    torch.manual_seed(0)
    model = LeNet5().build((1, 16, 16), 5)
    layout = Layout(model)
    x = layout.flatten(model)[0].unsqueeze(0)
    batch = Minibatch(torch.randn(1, 4, 1, 16, 16), torch.randint(5, (1, 4)), None)
    leaves = {n: v.clone().requires_grad_() for n, v in views(layout.parameters, x[0]).items()}
    with torch.autocast("cpu", torch.bfloat16):
        outputs = functional_call(model, leaves, (batch.inputs[0],))
    assert outputs.dtype == torch.bfloat16
    F.cross_entropy(outputs.float(), batch.targets[0]).backward()

    gradient, losses = PerClientGradient(Function(model, layout), "bfloat16")(x, batch)
    assert gradient.dtype == losses.dtype == torch.float32
    for name, view in views(layout.parameters, gradient[0]).items():
        assert torch.equal(view, leaves[name].grad)
    full, _ = PerClientGradient(Function(model, layout), "float32")(x, batch)
    error = ((gradient - full).norm() / full.norm()).item()
    assert 1e-4 < error < 0.05


def test_bfloat16_changes_local_steps_by_little_and_vectors_not_at_all(small):
    engine, low = trained(small, "bfloat16")
    other, full = trained(small, "float32")
    assert (type(engine.stacks.oracle).__name__, type(other.stacks.oracle).__name__) == (
        "PerClientGradient",
        "BatchedMLP",
    )
    difference = abs(low.sums["delta"] - full.sums["delta"]).max()
    assert 0 < difference < 0.05 * abs(full.sums["delta"]).max()
    assert {v.dtype for v in low.sums.values()} == {full.sums["delta"].dtype}


def test_evaluation_stays_float32(small):
    results = []
    for precision in ("bfloat16", "float32"):
        engine, _ = trained(small, precision)
        w, buffers = (v.numpy() for v in engine.layout.flatten(engine.model))
        results.append(engine.evaluate(Broadcast(w, {}, buffers), "test", 0, 50))
    assert results[0].loss == results[1].loss
    assert (results[0].scores == results[1].scores).all()


def test_tf32_is_float32_on_a_cpu_and_says_so(small):
    low, full = trained(small, "tf32")[1], trained(small, "float32")[1]
    assert (low.sums["delta"] == full.sums["delta"]).all()
    assert in_effect("tf32", CPU) == "float32"
    assert in_effect("tf32", GPU) == "tf32"
    assert in_effect("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_tf32_is_allowed_during_local_steps_only(precision):
    def flags():
        return (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        )

    allow_tf32(False, False)
    before = flags()
    with local_arithmetic(precision):
        assert (flags() == (True, True)) == (precision == "tf32")
    assert flags() == before


def test_a_process_that_trains_can_compile():
    """torch.compile refuses to work where the newer settings of float32's precision have been used."""
    configure_process(torch.get_num_threads())
    with local_arithmetic("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_is_part_of_the_experiments_identity(small):
    hashes = set()
    for precision in ("float32", "tf32", "bfloat16"):
        small["federation"]["precision"] = precision
        hashes.add(load_config(small).hash)
    assert len(hashes) == 3
    small["federation"]["precision"] = "float16"
    with pytest.raises(
        ConfigError, match=r"federation\.precision = 'float16': must be 'float32', "
    ):
        load_config(small)
