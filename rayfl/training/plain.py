"""A model as plain PyTorch computes it: the measure of every faster way."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Set
from typing import Literal

import torch
from torch import Tensor, nn

from rayfl.errors import first_line, reason
from rayfl.training.flat import Layout, views
from rayfl.training.function import channels_first
from rayfl.training.outcome import Outcome, Tensors, changed_parameters
from rayfl.training.process import generators
from rayfl.training.task import Task

# Inputs `[B, *sample_shape]` as the engine makes them, and targets `[B, ...]`.
Samples = tuple[Tensor, Tensor]
Mode = Literal["training", "evaluation"]

# Several threads bring a model of fewer parameters nothing, and wait for each other where others compute too.
FEW_PARAMETERS = 1_000_000
_WHOSE: dict[Mode, str] = {
    "training": "some client is that small; take group normalisation (model.norm=group), another "
    "federation.batch_size or another seed",
    "evaluation": "the test or validation set is that small; leave out a test sample, set another "
    "data.validation, or change the model",
}


class Unfit(Exception):
    """The model cannot be trained as plain PyTorch does; the text says why."""


class Plain:
    """A model as plain PyTorch computes it on two minibatches, in float64 if all of it can be.

    Use it within `restored`. Raises Unfit if the model cannot be trained on the minibatches.
    """

    def __init__(self, model: nn.Module, task: Task, batches: tuple[Samples, Samples]):
        self.model, self.task, self.layout = model, task, Layout(model)
        self.start, self.buffers = self.layout.flatten(model)
        # Not where the model starts: there, adapters are zero and what is computed from weights is fresh.
        self.w = _moved(self.start)
        self.counters = {
            n: b.clone() for n, b in model.named_buffers() if not b.is_floating_point()
        }
        self.changes_inputs = False  # true if a forward pass changes the samples that it is given
        self.first = self._begun(batches)  # outcome of the first minibatch
        if not self.first.loss["loss"].isfinite():
            self.w = self.start.to(self.w.dtype)
            self.restore()
            self.first = self.outcome()

    def check_single_sample(self, mode: Mode) -> None:
        """Unfit if the model cannot take a batch of one sample."""
        self.model.train(mode == "training")
        try:
            self._check_logits(self.model(channels_first(self.batches[0][0][:1])), 1, mode)
        except Exception as error:  # whatever the model raises
            raise Unfit(
                f"cannot take a batch of one sample in {mode} mode ({first_line(error)}), and the last batch "
                f"of {_WHOSE[mode]}"
            ) from error
        finally:
            self.restore()

    def outcome(self) -> Outcome:
        """Results of plain PyTorch on the first minibatch."""
        x, y = self.batches[0]
        step = self.step(x, y)
        self.model.eval()
        seed()
        with torch.no_grad():
            logits = self.model(channels_first(x))
        self.restore()
        return step._replace(logits={"logits": logits})

    def step(self, x: Tensor, y: Tensor) -> Outcome:
        """One training pass, forwards and backwards; without the logits in evaluation mode."""
        seed()
        self.model.train()
        drawn, frozen = generators()[:-1], self._frozen()
        outputs = self.model(inputs := channels_first(x))
        self._check_logits(outputs, len(y), "training")
        rows = self.task.rows(outputs.to(self.w.dtype))
        loss = self.task.mean(rows, self.task.targets(y))
        loss.backward()
        self.changes_inputs |= not torch.equal(inputs, x)
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if parameters.keys() != self.shaped(self.w).keys():
            names = sorted(parameters.keys() ^ self.shaped(self.w).keys())
            raise Unfit(f"changes in a forward pass which parameters are trained: {names}")
        gradient = {n: _dense(p) for n, p in parameters.items()}
        self.model.zero_grad()
        self._check_kept(drawn, frozen)
        buffers = {n: b.clone() for n, b in self.model.named_buffers() if b.is_floating_point()}
        changed = changed_parameters(
            {n: p.detach() for n, p in parameters.items()}, self.shaped(self.w)
        )
        self.restore()
        return Outcome({"loss": loss.detach()}, gradient, buffers, changed, {})

    def shaped(self, flat: Tensor) -> Tensors:
        """The parameters in a flat vector."""
        return views(self.layout.parameters, flat)

    def _begun(self, batches: tuple[Samples, Samples]) -> Outcome:
        """Plain PyTorch's outcome: in float64 if the model allows that, else in float32."""
        if _is_float32(self.model):
            self._convert(torch.float64, batches)  # and moves the parameters
            with contextlib.suppress(Exception):  # a constant in float32, say
                return self.outcome()
            self._convert(torch.float32, batches)
        else:
            self.batches = batches
            self.restore()
        try:
            return self.outcome()
        except Unfit:
            raise
        except Exception as error:  # whatever the model raises
            raise Unfit(
                f"fails in training mode on samples {list(batches[0][0].shape)} ({reason(error)}); change "
                "its options, or take another model"
            ) from error

    def _convert(self, dtype: torch.dtype, batches: tuple[Samples, Samples]) -> None:
        """Let all be computed in this type."""
        self.model.to(dtype)
        self.w, self.buffers = self.w.to(dtype), self.buffers.to(dtype)
        first, second = ((x.to(dtype) if x.is_floating_point() else x, y) for x, y in batches)
        self.batches = first, second
        self.restore()

    def _frozen(self) -> dict[str, float]:
        """Sums by which a change of frozen parameters shows."""
        frozen = ((n, p) for n, p in self.model.named_parameters() if not p.requires_grad)
        return {name: float(p.detach().to(torch.float64).sum()) for name, p in frozen}

    def _check_kept(self, drawn: object, frozen: dict[str, float]) -> None:
        """Unfit if a pass has changed what does not travel: another actor would not have it."""
        if generators()[:-1] != drawn:
            raise Unfit(
                "draws from the generators of Python or NumPy, which differ from process to process; draw "
                "from torch's"
            )
        after = self._frozen()
        changed = [n for n in frozen if after[n] != frozen[n] and math.isfinite(frozen[n])]
        counted = {f"{name}.num_batches_tracked" for name, _ in self.model.named_modules()}
        changed += [
            name
            for name, buffer in self.model.named_buffers()
            if name in self.counters and name not in counted | {"num_batches_tracked"}
            if not torch.equal(buffer, self.counters[name])
        ]
        if changed:
            raise Unfit(
                f"changes {changed[0]!r} in training; only trained parameters and float buffers travel and "
                "are averaged: make it one of those, or keep it as it is"
            )

    def _check_logits(self, outputs: object, samples: int, mode: Mode) -> None:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if got != (samples, *self.task.shape):
            raise Unfit(
                f"in {mode} mode {samples} samples must give outputs of shape {(samples, *self.task.shape)}, "
                f"it gives {got}"
            )

    def restore(self) -> None:
        """Put the model where it was before the pass."""
        buffers = views(self.layout.buffers, self.buffers) | self.counters
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
            for name, weight in self.shaped(self.w).items():
                if not torch.equal(parameters[name], weight):
                    parameters[name].copy_(weight)


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Afterwards the model has the mode and the types that it had, and torch's generator is where it was."""
    training, whole, threads = model.training, _is_float32(model), torch.get_num_threads()
    layout = Layout(model)
    state = layout.flatten(model)
    try:
        if layout.size < FEW_PARAMETERS:
            torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        if whole:
            model.float()
        layout.load(model, *state)
        model.train(training)
        torch.set_num_threads(threads)


def _is_float32(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return all(t.dtype == torch.float32 for t in tensors if t.is_floating_point())


def check_tensors(model: nn.Module) -> None:
    """Unfit if parameters and buffers cannot be two float32 vectors."""
    if problem := _problem(model):
        raise Unfit(problem)


def _problem(model: nn.Module) -> str | None:
    """Obstacle to two float32 vectors; None: there is none."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        return "has no trainable parameters; set requires_grad of those that clients shall train"
    for name, parameter in trainable.items():
        if nn.parameter.is_lazy(parameter):
            return f"{name!r} has no shape after a forward pass in evaluation mode; give it one"
        if parameter._post_accumulate_grad_hooks:
            return f"{name!r} has a hook that waits for its .grad, which is never written; use register_hook"
    floats = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    for name, tensor in (trainable | floats).items():
        if tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            return (
                f"{name!r} is {kind}; trainable parameters and float buffers must be float32, as what "
                "travels and is averaged: build the model with module.float()"
            )
    held = {
        f"{path}.{name}".lstrip("."): value
        for path, part in model.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor)
    }
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return _overlap(held | named, {*trainable, *floats})


def _overlap(tensors: Mapping[str, Tensor], travel: Set[str]) -> str | None:
    """Two tensors in one memory, one of which travels: in plain PyTorch, what they share moves with both."""
    spans = sorted(
        (p.untyped_storage().data_ptr(), p.storage_offset(), p.storage_offset() + p.numel(), name)
        for name, p in tensors.items()
        if p.numel() and not nn.parameter.is_lazy(p)
    )
    for (storage, _, end, first), (other, begin, _, second) in itertools.pairwise(spans):
        if storage == other and begin < end and {first, second} & travel:
            return (
                f"{first!r} and {second!r} are two tensors in one memory; to tie layers, give both the "
                "parameter itself (a.weight = b.weight)"
            )
    return None


def numbers(model: nn.Module) -> dict[str, object]:
    """Numbers and texts that modules keep as attributes, but for their mode."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in model.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | str) and name != "training"
    }


def _moved(w: Tensor) -> Tensor:
    """Parameters near these, as some steps of training leave them; the same at each call."""
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    return w + (0.1 * w.abs() + 0.01) * noise


def _dense(parameter: nn.Parameter) -> Tensor:
    """Its gradient: zeros if no output depends on it, and not sparse, as that of embeddings may be."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


def seed() -> None:
    """Let each pass draw the same random numbers."""
    torch.default_generator.manual_seed(0)
