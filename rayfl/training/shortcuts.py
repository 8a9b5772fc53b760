"""Choose the short cuts for a model: those that change nothing.

Before the first round one local step is computed as plain PyTorch does, and in each way that the engine
knows, on the same model, samples and mode; in float64 where the model allows it. A way that gives something
else is not taken, and the run says so. A model that gives something else as a function of a flat vector,
which all ways have in common, cannot be trained here: it is refused.
"""

from collections.abc import Set
from dataclasses import replace

import torch
from torch import nn

from rayfl.errors import ConfigError, first_line, reason
from rayfl.training.batches import Minibatch
from rayfl.training.conv_crop import Crops, find_crops
from rayfl.training.flat import Layout, views
from rayfl.training.function import Function, Shortcuts, channels_first, gradient_hooks
from rayfl.training.gradients import BatchedMLP, Oracle, PerClientGradient, VmapGradient, mlp_layers
from rayfl.training.outcome import Outcome, changed_parameters, difference
from rayfl.training.plain import Mode, Plain, Samples, Unfit, check_tensors, numbers, restored, seed
from rayfl.training.task import Task
from rayfl.training.travel import packed, unpacked


def choose(
    model: nn.Module,
    name: str,
    task: Task,
    batches: tuple[Samples, Samples],
    single_samples: Set[Mode] = frozenset(),
    stack: int | None = None,
) -> Shortcuts:
    """The short cuts that change nothing for this model, which is left as it was.

    `name`: of the model, as users write it. `batches`: two minibatches of one size. `single_samples`: modes
    in which the model meets batches of one. `stack`: clients that shall train at once. Raises ConfigError if
    the model cannot be trained as plain PyTorch does, or not in such a stack.
    """
    try:
        check_tensors(model)
        with restored(model):
            comparison = Comparison(model, task, batches)
            for mode in single_samples:
                comparison.plain.check_single_sample(mode)
            shortcuts = comparison.choose()
            if stack is not None and stack > 1 and not shortcuts.dense:
                comparison.check_stack(shortcuts, stack)
            return shortcuts
    except Unfit as error:
        raise ConfigError(f"{error}", key="model.name", value=name) from error


class Comparison:
    """A model as plain PyTorch computes it, and the ways of the engine that give the same."""

    def __init__(self, model: nn.Module, task: Task, batches: tuple[Samples, Samples]):
        self.model, self.layout, self.hooks = model, Layout(model), gradient_hooks(model)
        try:
            self.parcel = packed(model)
            unpacked(self.parcel)
        except Exception as error:  # whatever the model's classes do
            raise Unfit(
                f"cannot be sent to other processes ({reason(error)}); all that it holds must pickle"
            ) from error
        self.plain = Plain(model, task, batches)
        self.expected = self.plain.first

    def choose(self) -> Shortcuts:
        """The ways that give what plain PyTorch gives."""
        taken = Shortcuts(shares_inputs=not self.plain.changes_inputs, hooks=self.hooks)
        dropped: list[str] = []
        if why := self._why_not(taken, twice=True):
            taken = replace(taken, channels_last=False)
            if not_at_all := self._why_not(taken, twice=True):
                raise Unfit(self._why_unfit(not_at_all))
            dropped.append(f"images and kernels lie channels first in memory: channels last, {why}")
        if crops := self._crops():
            if why := self._why_not(replace(taken, crops=crops)):
                dropped.append(f"kernels are not cropped to what meets the maps: cropped, {why}")
            else:
                taken = replace(taken, crops=crops)
        if mlp_layers(self.model) is not None and self.plain.task.usual:
            if why := self._why_no_rows(BatchedMLP(Function(self.model, self.layout))):
                dropped.append(f"clients train one at a time: as a stack, {why}")
            else:
                taken = replace(taken, dense=True)
        return replace(taken, dropped=tuple(dropped))

    def check_stack(self, shortcuts: Shortcuts, stack: int) -> None:
        """ConfigError if so many clients cannot train at once."""
        if self.layout.buffers:
            why = f"its buffers ({self.layout.buffers[0].name}, ...) change as it trains"
        else:
            function = shortcuts.function(self._arrived(), self.plain.task)
            function.model.train()
            why = self._why_no_rows(VmapGradient(function))
        if why:
            raise ConfigError(
                "clients of this model train one at a time, because in a stack "
                f"{why}; leave federation.stack out, or choose another model",
                key="federation.stack",
                value=stack,
            )

    def _arrived(self) -> nn.Module:
        """The model as a client actor has it, in the type that is compared."""
        model = unpacked(self.parcel)
        return model.double() if self.plain.w.dtype == torch.float64 else model

    def _crops(self) -> Crops:
        inputs = channels_first(self.plain.batches[0][0][:1])
        try:
            return find_crops(self.model, inputs, [slot.name for slot in self.layout.parameters])
        finally:
            self.plain.restore()

    def _why_not(self, shortcuts: Shortcuts, twice: bool = False) -> str | None:
        """Describe how the model as a function of a flat vector differs from plain PyTorch, or None.

        `twice`: also if the same process takes the same step again.
        """
        try:
            function = shortcuts.function(self._arrived(), self.plain.task)
            why = difference(self._as_function(function), self.expected)
            if why or not twice:
                return why
            kept = numbers(function.model)
            why = difference(self._as_function(function), self.expected)
            _check_same(kept, numbers(function.model))
            return why
        except Unfit:
            raise
        except Exception as error:  # whatever the model raises
            return f"it fails ({first_line(error)})"

    def _as_function(self, function: Function) -> Outcome:
        plain, (x, y) = self.plain, self.plain.batches[0]
        w, buffers = plain.w.clone(), plain.buffers.clone()
        function.model.train()
        oracle = PerClientGradient(function)
        oracle.begin_client(buffers)
        seed()
        gradient, loss = oracle(w[None], Minibatch(x.clone()[None], y[None], None))
        changed = changed_parameters(plain.shaped(w), plain.shaped(plain.w))
        function.model.eval()
        with torch.no_grad():  # at other weights first: nothing computed from them may stay
            elsewhere = function.parameters(1.1 * plain.w) | function.buffers(plain.buffers.clone())
            function(elsewhere, function.inputs(x.clone()))
        seed()
        tensors = function.parameters(plain.w.clone()) | function.buffers(plain.buffers.clone())
        with torch.no_grad():
            logits = function(tensors, function.inputs(x.clone()))
        return Outcome(
            {"loss": loss[0]},
            plain.shaped(gradient[0]),
            views(self.layout.buffers, buffers),
            changed,
            {"logits": logits},
        )

    def _why_no_rows(self, oracle: Oracle) -> str | None:
        """Describe how a stack of two clients differs from plain PyTorch on each; None: it does not."""
        plain = self.plain
        xs, ys = (torch.stack(parts) for parts in zip(*plain.batches, strict=True))
        second = plain.step(*plain.batches[1])
        try:
            gradients, losses = oracle(plain.w.repeat(2, 1), Minibatch(xs, ys, None))
        except Exception as error:  # whatever the model, or vmap, raises
            return f"it fails ({first_line(error)})"
        for row, expected in enumerate((self.expected, second)):
            found = expected._replace(
                loss={"loss": losses[row]}, gradient=plain.shaped(gradients[row])
            )
            if why := difference(found, expected):
                return why
        return None

    def _why_unfit(self, why: str) -> str:
        if differs := difference(self.plain.outcome(), self.expected):
            return (
                f"gives something else when the same minibatch comes again ({differs}); what is random in it "
                "must come from torch's generator, and what it keeps must be a buffer"
            )
        return (
            f"is something else as a function of its parameters than as it is ({why}); each parameter must "
            "be reached as an attribute of a module, by no list, closure or copy"
        )


def _check_same(before: dict[str, object], after: dict[str, object]) -> None:
    """Unfit if the same pass left other numbers with the model's modules."""
    changed = [n for n in after if n in before and after[n] != before[n]]
    if changed:
        raise Unfit(
            f"counts in {changed[0]!r}: what a process keeps beside parameters and float buffers depends on "
            "which clients it has trained; drop it, or make it a float buffer"
        )
