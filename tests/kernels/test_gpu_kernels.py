"""The kernels for GPUs, in Triton's interpreter, and plain PyTorch in their place."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import each
from torch import nn
from torch.nn import functional as F

from rayfl import kernels

BOUND = 2e-6  # relative to the largest number of a tensor


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton comes with PyTorch's builds for CUDA alone")
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter needs a NumPy below 2.4")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_group_norm_is_that_of_float64(interpreted, subtests):
    for name, found in interpreted["group_norms"].items():
        with subtests.test(name):
            sums = {"summed": 1} if name != "neither" else {}
            assert found["ran"] == {"forward": 1, "backward": 1} | sums
            assert found["error"] < max(BOUND, 2 * found["plain"])


@pytest.mark.slow
def test_group_norm_stays_channels_last(interpreted):
    assert interpreted["memory_formats"] == {"y": True, "dx": True}


@pytest.mark.slow
def test_what_the_kernels_do_not_take_is_pytorchs(interpreted):
    assert all(interpreted["fallbacks"].values()), interpreted["fallbacks"]


@pytest.mark.slow
@each(kernel=["difference_plus", "sgd", "norms"])
def test_flat_arithmetic_is_that_of_float64(interpreted, kernel):
    for name, of_case in interpreted[kernel].items():
        if isinstance(of_case, bool):
            assert of_case, name
            continue
        assert sum(of_case["ran"].values()) == 1, name
        assert of_case["error"] < BOUND, name


@pytest.mark.slow
def test_local_steps_use_the_kernels(interpreted):
    found = interpreted["local_steps"]
    assert found["ran"] == {"difference_plus": 2, "of_norm": 7, "sgd_step_": 3}  # 2 cosines
    assert found["error"] < BOUND


@pytest.mark.slow
def test_the_layers_of_a_model_use_the_kernels(interpreted):
    found = interpreted["models"]
    assert found["ran"] == {"forward": 1, "backward": 1, "summed": 1}
    assert found["error"] < BOUND


@pytest.mark.slow
def test_kernels_that_are_wrong_stay_off_and_the_check_says_why(interpreted):
    found = interpreted["broken"]
    assert found["as they are"] is None
    assert found["wrong"].startswith("difference_plus is 1.0e-04 from")
    assert found["unsteady"] == "difference_plus is not the same twice"
    assert found["failing"] == "RuntimeError: Failed to find C compiler."
    assert "difference_plus" in found["nan"]
    assert found["use"] == found["nan"]
    assert found["on"] == "False"


def test_a_cpu_computes_as_pytorch_does():
    cpu, x = torch.device("cpu"), torch.randn(2, 8, 3, 3)
    assert kernels.use(cpu) == kernels.check(cpu) == "kernels need a GPU"
    assert not kernels.on(x)
    weight, bias = torch.randn(8), torch.randn(8)
    assert torch.equal(
        kernels.group_norm(x, 2, weight, bias, 1e-5), F.group_norm(x, 2, weight, bias)
    )
    u, v, w, rate = *torch.randn(3, 4, 7), torch.rand(4, 1)
    assert torch.equal(
        kernels.difference_plus(u, v, 0.3, w, 2), torch.addcmul((u - v) * 0.3, w, torch.tensor(2.0))
    )
    moved = kernels.sgd_step_(u.clone(), v, rate, 0.1, None)
    assert torch.equal(moved, torch.addcmul(u * (1 - rate * 0.1), v, -rate))


@pytest.mark.slow
def test_triton_is_not_imported_where_it_is_not_used():
    code = (
        "import sys, torch, rayfl.training.engine; from rayfl import kernels; "
        "kernels.use(torch.device('cpu')); kernels.with_group_norm(torch.nn.GroupNorm(2, 4));"
        "print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Own(nn.GroupNorm):
    """Somebody's own normalisation."""


def test_a_model_with_the_kernels_shares_its_parameters():
    shared = nn.GroupNorm(2, 8)
    hooked = nn.GroupNorm(2, 8)
    hooked.register_forward_hook(lambda *args: None)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.Sequential(shared), Own(2, 8), hooked)
    own = kernels.with_group_norm(model)
    assert own is not model
    assert [type(part).__name__ for part in model] == [
        "Conv2d",
        "GroupNorm",
        "Sequential",
        "Own",
        "GroupNorm",
    ]
    parts = list(own)
    assert type(parts[1]) is not nn.GroupNorm
    assert isinstance(parts[1], nn.GroupNorm)
    assert parts[2][0] is parts[1]
    assert type(parts[3]) is Own
    assert type(parts[4]) is nn.GroupNorm
    pairs = zip(model.named_parameters(), own.named_parameters(), strict=True)
    assert all(a == b and p is q for (a, p), (b, q) in pairs)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(own(x), model(x))


def test_a_model_without_group_norm_stays_itself():
    model = nn.Sequential(nn.Linear(2, 2), Own(1, 2))
    assert kernels.with_group_norm(model) is model
