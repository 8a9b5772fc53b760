"""Runs every kernel in Triton's interpreter, in a process of its own, and prints what came out as JSON.

Triton decides when a kernel is defined whether it will be compiled or interpreted.
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl import kernels
from rayfl.algorithms import ALGORITHMS
from rayfl.algorithms.base import ExperimentInfo, TensorInfo
from rayfl.kernels import switch, triton_flat, triton_group_norm, triton_norm
from rayfl.training.local import SGD, LocalStep, Training

CPU = torch.device("cpu")
RANDOM = torch.Generator().manual_seed(1)
KERNELS = {
    triton_flat: ("difference_plus", "sgd_step_"),
    triton_norm: ("of_norm",),
    triton_group_norm: ("forward", "backward", "summed"),
}
launched: dict[str, int] = {}

# samples, channels, groups, height, width of the maps
MAPS = {
    "one tile": (2, 8, 2, 3, 3),
    "vectors": (2, 512, 2, 1, 1),
    "no power of two": (1, 80, 2, 5, 3),
    "three channels a group": (2, 6, 2, 4, 4),
    "one channel a group": (1, 2, 2, 47, 45),
    "one group": (2, 48, 1, 5, 8),
    "more positions than a tile": (1, 64, 2, 13, 11),
    "a large group": (1, 64, 2, 17, 17),
    "more samples than a tile": (34, 2, 1, 2, 1),
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM)


def maps(*shape: int) -> Tensor:
    return random(*shape).to(memory_format=torch.channels_last)


def counted(name: str, kernel: Callable) -> Callable:
    def call(*args: Any) -> Any:
        launched[name] = launched.get(name, 0) + 1
        return kernel(*args)

    return call


def counting() -> None:
    """Count the calls of each kernel in `launched`."""
    for module, names in KERNELS.items():
        for name in names:
            setattr(module, name, counted(name, getattr(module, name)))


def error(got: Iterable[Tensor | None], exact: Iterable[Tensor | None]) -> float:
    """Largest distance, relative to the largest number of its tensor."""
    pairs = [(g, e) for g, e in zip(got, exact, strict=True) if g is not None and e is not None]
    assert all(g.shape == e.shape and g.dtype == torch.float32 for g, e in pairs)
    return max(((g - e).abs().max() / e.abs().max()).item() for g, e in pairs)


def outcome(kernel: Callable, plain: Callable, *inputs: Any) -> dict[str, Any]:
    """How far the kernels and PyTorch's float32 are from float64, and which kernels ran."""
    launched.clear()
    got = kernel(*inputs)
    ran = dict(launched)
    exact = plain(*(v.double() if isinstance(v, Tensor) else v for v in inputs))
    return {"error": error(got, exact), "plain": error(plain(*inputs), exact), "ran": ran}


def normalised(norm: Callable) -> Callable:
    """The normalised maps, and the gradients by maps, weight and bias."""

    def compute(
        x: Tensor, dy: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None
    ) -> list[Tensor | None]:
        leaves = [t if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
        y = norm(leaves[0], groups, leaves[1], leaves[2], 1e-5)
        present = [t for t in leaves if t is not None]
        gradients = iter(torch.autograd.grad(y, present, dy))
        return [y.detach(), *(t if t is None else next(gradients) for t in leaves)]

    return compute


def group_norm(*inputs: Any) -> dict[str, Any]:
    return outcome(normalised(kernels.group_norm), normalised(F.group_norm), *inputs)


def group_norms() -> dict[str, Any]:
    found = {}
    for name, (samples, channels, groups, height, width) in MAPS.items():
        x, dy = (maps(samples, channels, height, width) for _ in range(2))
        found[name] = group_norm(x, dy, groups, random(channels), random(channels))
    x, dy, flat = maps(1, 8, 3, 3), maps(1, 8, 3, 3), random(40)
    found["no weight"] = group_norm(x, dy, 2, None, flat[:8])
    found["no bias"] = group_norm(x, dy, 2, flat[:8], None)
    found["neither"] = group_norm(x, dy, 2, None, None)
    found["views"] = group_norm(x, dy, 2, flat[3:11], flat[17:25])
    found["gradient channels first"] = group_norm(x, dy.contiguous(), 2, flat[3:11], flat[17:25])
    expanded = random(1, 8, 1, 1).expand(1, 8, 3, 3)
    found["expanded gradient"] = group_norm(x, expanded, 2, flat[3:11], flat[17:25])
    found["far from zero"] = group_norm(x + 300, dy, 2, flat[3:11], flat[17:25])
    return found


def fallbacks() -> dict[str, Any]:
    """Kernels that ran for what they do not take, and whether the result was PyTorch's."""
    x, weight, bias = maps(2, 8, 3, 3), random(8), random(8)
    inputs = {
        "float64": (x.double(), weight.double(), bias.double()),
        "channels first": (x.contiguous(), weight, bias),
        "three dimensions": (x[..., 0], weight, bias),
        "empty": (x[:0], weight, bias),
        "weight with gaps": (x, random(16)[::2], bias),
    }
    found = {}
    launched.clear()
    for name, (y, w, b) in inputs.items():
        same = torch.equal(kernels.group_norm(y, 2, w, b, 1e-5), F.group_norm(y, 2, w, b))
        found[name] = same and not launched
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (f(x, 2, weight, bias, 1e-5) for f in (kernels.group_norm, F.group_norm))
    found["autocast"] = torch.equal(got, want) and not launched
    stacked = torch.func.vmap(lambda t: kernels.group_norm(t, 2, weight, bias, 1e-5))(x[None])
    found["vmap"] = torch.allclose(stacked[0], F.group_norm(x, 2, weight, bias)) and not launched
    gaps, v = random(3, 20)[:, ::2], random(3, 10)
    got = kernels.difference_plus(gaps, v, 1.0, gaps, 0.0)
    found["vectors with gaps"] = torch.equal(got, gaps - v) and not launched
    leaf = random(3, 10).requires_grad_()
    got = kernels.difference_plus(leaf, random(3, 10), 1.0, random(10), 0.0)
    found["differentiated"] = got.requires_grad and not launched
    return found


def memory_formats() -> dict[str, bool]:
    """Whether output and gradient are channels last."""
    x = maps(2, 8, 3, 3).requires_grad_()
    y = kernels.group_norm(x, 2, None, None, 1e-5)
    (dx,) = torch.autograd.grad(y.sum(), x)
    last = torch.channels_last
    return {"y": y.is_contiguous(memory_format=last), "dx": dx.is_contiguous(memory_format=last)}


def difference_plus() -> dict[str, Any]:
    def plain(u: Tensor, v: Tensor, a: Any, w: Tensor, b: Any) -> list[Tensor]:
        return [a * (u - v) + b * w]

    def kernel(*inputs: Any) -> list[Tensor]:
        return [kernels.difference_plus(*inputs)]

    found = {}
    for size in (1, 1023, 1024, 1025, 2500):
        u, v, w = random(size), random(3, size), random(1, size)
        found[f"shared rows of {size}"] = outcome(kernel, plain, u, v, random(1), w, random(3, 1))
    u, v, w = random(50), random(50), random(50)
    found["vectors"] = outcome(kernel, plain, u, v, random(), w, 3)
    found["one client"] = outcome(kernel, plain, u.expand(1, -1), v[None], 0.25, w[None], random(1))
    rows = random(3, 100)[:, 7:57]
    found["rows of a larger vector"] = outcome(kernel, plain, rows, rows, random(3, 1), rows, 2.0)
    return found


def sgd() -> dict[str, Any]:
    def plain(x: Tensor, d: Tensor, rate: Tensor, decay: float, factor: Any) -> list[Tensor]:
        return [x * (1 - rate * decay) - rate * (1 if factor is None else factor) * d]

    def kernel(x: Tensor, *rest: Any) -> list[Tensor]:
        x = x.clone()
        assert kernels.sgd_step_(x, *rest) is x
        return [x]

    found = {}
    for size in (1, 1025, 2500):
        x, d = random(3, size), random(3, size)
        found[f"rows of {size}"] = outcome(kernel, plain, x, d, random(), 0.1, random(3, 1))
    rate = torch.tensor([[0.5], [0.0], [0.25]])
    found["no factor"] = outcome(kernel, plain, x, d, rate, 0.1, None)
    found["no decay"] = outcome(kernel, plain, x, d, rate, 0, random(3, 1))
    found["one direction"] = outcome(kernel, plain, x, d[0], rate, 0.1, random(3, 1))
    found["vector"] = outcome(kernel, plain, x[0], d[0], random(), 0.1, random(1))
    found["a client at rate 0 stays"] = torch.equal(kernel(x, d, rate, 0.1, None)[0][1], x[1])
    return found


def norms() -> dict[str, Any]:
    """What depends on norms; PARTS is 2 here, so that programs take several blocks."""
    triton_norm.PARTS = 2
    computations: dict[str, Callable] = {
        "inverse": lambda v: [kernels.inverse_norm(v, 0.5, 1e-12)],
        "clipped": lambda v: [kernels.clip_factor(v, 2.0)],
        "not clipped": lambda v: [kernels.clip_factor(v, 1e3)],
    }
    found = {}
    for size in (1, 2047, 2048, 2049, 10_000):
        for name, compute in computations.items():
            found[f"{name}, rows of {size}"] = outcome(compute, compute, random(3, size))
    for name, compute in computations.items():
        found[f"{name}, vector"] = outcome(compute, compute, random(50))
        found[f"{name}, shared"] = outcome(compute, compute, random(50).expand(2, -1))
    small, nan = torch.full((1, 4), 1e-13), torch.tensor([[1.0, float("nan")]])
    found["no direction"] = kernels.inverse_norm(small, 0.5, 1e-12).item() == 0
    found["nan stays"] = bool(
        kernels.clip_factor(nan, 1.0).isnan() & kernels.inverse_norm(nan, 1.0, 0.1).isnan()
    )
    return found


class Distance:
    """1/2 ||x - target||^2."""

    stacks = True

    def __call__(self, x: Tensor, batch: Any, loss: Any = None) -> tuple[Tensor, Tensor]:
        return x - batch, (x - batch).square().sum(-1) / 2


def local_steps() -> dict[str, Any]:
    """Three steps of two clients of FedWMSAM, with and without the kernels."""
    algorithm = ALGORITHMS["fedwmsam"]()
    info = ExperimentInfo((8, 8), 4, 1, None, (TensorInfo("w", torch.Size([40]), 0),))
    step = LocalStep(algorithm, Distance(), SGD(lr=0.5, weight_decay=0.1, clip_norm=1.0), info)
    start, batch = random(40), random(2, 40)
    shared = {name: random(*v.shape) for name, v in algorithm.init_server(start).items()}
    shared["alpha"] = torch.full((1,), 0.3)

    def deltas() -> Tensor:
        memory = {n: v.expand(2, -1) for n, v in algorithm.init_client(start).items()}
        return Training(step, lambda k: batch, start, shared, memory, [3, 2]).run().uploads["delta"]

    launched.clear()
    with switch.turned_on(CPU):
        got = deltas()
    ran = dict(launched)
    return {"error": error([got], [deltas()]), "ran": ran}


def models() -> dict[str, Any]:
    """A model whose GroupNorms call the kernel."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(inplace=True))
    model = model.to(memory_format=torch.channels_last)
    x = maps(2, 3, 5, 5)
    launched.clear()
    got, want = kernels.with_group_norm(model)(x), model(x)
    got.sum().backward()
    return {"error": error([got], [want]), "ran": dict(launched)}


def broken() -> dict[str, str | None]:
    """What the check says about kernels that are wrong."""
    own, calls = triton_flat.difference_plus, []

    def wrong(out: Tensor, *rest: Tensor) -> None:
        own(out, *rest)
        out.mul_(1 + 1e-4)

    def unsteady(out: Tensor, *rest: Tensor) -> None:
        own(out, *rest)
        calls.append(out)
        out[0, 0] += len(calls) * 1e-5

    def failing(*args: Tensor) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    def nothing(out: Tensor, *rest: Tensor) -> None:
        out.fill_(float("nan"))

    said = {"as they are": kernels.check(CPU)}
    kinds = {"wrong": wrong, "unsteady": unsteady, "failing": failing, "nan": nothing}
    for name, kernel in kinds.items():
        triton_flat.difference_plus = kernel
        said[name] = kernels.check(CPU)
    said["use"], on = kernels.use(CPU), kernels.on(torch.zeros(1))
    triton_flat.difference_plus = own
    return said | {"on": str(on)}


if __name__ == "__main__":
    counting()
    results: dict[str, Any] = {"broken": broken(), "local_steps": local_steps()}
    switch.turn_on(CPU)
    for part in (group_norms, fallbacks, memory_formats, difference_plus, sgd, norms, models):
        results[part.__name__] = part()
    print(json.dumps(results))
