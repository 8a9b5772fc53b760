"""Checks at start: the kernels must give PyTorch's results within rounding, and their own bit for bit."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rayfl.kernels.flat import clip_factor, difference_plus, inverse_norm, sgd_step_
from rayfl.kernels.group_norm import group_norm
from rayfl.kernels.switch import interpreted, turn_on, turned_on

# Most that a result may lie from that of float64, in roundings of the largest number of a tensor.
ROUNDINGS = 32


class Case(NamedTuple):
    """A computation that is the kernels' in float32, and PyTorch's own in float64."""

    name: str
    run: Callable[..., list[Tensor]]  # leaves its inputs as they are
    inputs: list[Tensor]


_reasons: dict[torch.device, str | None] = {}


def use(device: torch.device) -> str | None:
    """Turn the kernels on in this process, if they pass their check on the device; None, or why not.

    The check is made once. Local steps have to be taken once before they are recorded as a CUDA graph:
    kernels are compiled at their first call.
    """
    if device not in _reasons:
        _reasons[device] = check(device)
    if _reasons[device] is None:
        turn_on(device)
    return _reasons[device]


def check(device: torch.device) -> str | None:
    """Compare each kernel with PyTorch's float64 and with itself; one line that says what is wrong, or None.

    Compiles them, which takes seconds where Triton has no cache of it. torch's generators stay as they are.
    """
    if device.type != "cuda" and not interpreted():
        return "kernels need a GPU"
    try:
        with turned_on(device), torch.enable_grad():
            return next(filter(None, map(_fault, _cases(device))), None)
    except Exception as error:  # no compiler, no Triton, one of another version: whatever it is
        text = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {text[0]}"


def _fault(case: Case) -> str | None:
    got, again = case.run(*case.inputs), case.run(*case.inputs)
    if not all(map(torch.equal, got, again)):
        return f"{case.name} is not the same twice"
    exact = case.run(*(t.double() for t in case.inputs))
    bound = ROUNDINGS * torch.finfo(torch.float32).eps
    for value, of_float64 in zip(got, exact, strict=True):
        error = (value - of_float64).abs().max() / of_float64.abs().max()
        if not error <= bound:
            return f"{case.name} is {error:.1e} from PyTorch's"
    return None


def _cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    size = (
        2512  # no multiple of a block, and aligned: as one client, kernels are not compiled again
    )
    u, v, w = random(size), random(3, size), random(3, size)
    yield Case(
        "difference_plus", lambda *t: [difference_plus(*t)], [u, v, random(1), w, random(3, 1)]
    )
    yield Case(
        "sgd_step_",
        lambda x, d, rate, f: [
            sgd_step_(x.clone(), d, rate, 0.1, f),
            sgd_step_(x.clone(), d, rate, 0, None),
        ],
        [v, w, random(), random(3, 1)],
    )
    yield Case("inverse_norm", lambda v: [inverse_norm(v, 0.1, 1e-12)], [v])
    yield Case("clip_factor", lambda v: [clip_factor(v, 1.0)], [v])
    for channels, side in ((64, 16), (128, 3), (512, 1)):  # of 2 groups
        x, dy = (random(3, side, side, channels).permute(0, 3, 1, 2) for _ in range(2))
        yield Case(
            f"group_norm of {channels} channels",
            _normalised,
            [x, dy, random(channels), random(channels)],
        )


def _normalised(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Group normalisation and its gradients."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = group_norm(leaves[0], 2, leaves[1], leaves[2], 1e-5)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]
