"""One call of a method's function, watched: what `algorithms/base.py` asks of every function."""

import inspect
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

import rayfl
from rayfl.algorithms.base import Algorithm, Vectors
from rayfl.text import one_line
from rayfl.training.process import generators
from rayfl.training.value_reads import ValueReads

Doubt = Literal["size", "rounding"]
Given = dict[str, Tensor | Vectors]  # arguments of a function, by name

# Names of what each function returns: vectors are tensors, the rest are dicts of them.
RETURNS = {
    "init_server": ("server",),
    "init_client": ("memory",),
    "broadcast": ("start", "shared"),
    "client_start": ("first",),
    "local_step": ("direction", "memory"),
    "upload": ("uploads", "memory"),
    "upload_bytes": ("bytes",),
    "server_step": ("w", "server"),
    "global_momentum": ("momentum",),
}
VECTORS = ("start", "first", "direction", "bytes", "w", "momentum")
# Arguments of each function that have a row for each client.
ROWS = {
    "client_start": ("memory", "ctx.start", "ctx.steps", "ctx.samples"),
    "local_step": ("x", "memory", "ctx.start", "ctx.steps", "ctx.samples"),
    "upload": ("delta", "memory", "ctx.start", "ctx.steps", "ctx.samples"),
    "upload_bytes": ("uploads",),
}
# A run stops where these are not finite, or lacks a metric.
FINITE = (*VECTORS, "uploads", "server")
# Errors are looked for in the user's own files.
LIBRARIES = tuple(f"{Path(package.__file__ or '').parent}{os.sep}" for package in (rayfl, torch))


class Broken(Exception):
    """A rule that a function breaks, in words."""

    def __init__(self, words: str, doubt: Doubt | None):
        super().__init__(words)
        self.doubt = doubt  # another possible cause: a vector shorter than the model's, or float32


class Watch:
    """Calls the functions of a method; `Broken` is raised by a call that breaks a rule."""

    def __init__(self, method: Algorithm):
        self.method = method
        # Server state that begins at infinity, as a running minimum does.
        self._infinite: set[str] = set()

    def __call__(self, function: str, given: Given, call: Callable[[], Any]) -> Any:
        """Return the result of `call`, if that is all it does, and the same each time."""
        process, before = generators(), _flat(given)
        # The version tells of writes that leave the values as they are, such as half of 0.
        copies = {name: (value._version, value.clone()) for name, value in before.items()}
        rows = [t for name, t in before.items() if name.startswith(ROWS.get(function, ()))]
        reads = ValueReads(rows, LIBRARIES)
        with reads:
            result = self.returned(function, call)
        self._must_be_untouched(function, before, copies, _flat(given))
        first = self.named(function, result)
        again = self.named(function, self.returned(function, call))
        if generators() != process:
            self.refuse(
                function,
                "uses a random generator of the whole process (torch, numpy or random): results would "
                "depend on where clients run; draw with ctx.random(like), which local_step, upload and "
                "server_step have",
            )
        changed = [name for name in first | again if not same(first.get(name), again.get(name))]
        if changed:
            self.refuse(
                function,
                f"called twice with the same inputs gives another {changed[0]}, but may depend on nothing "
                "else; keep what has to last in the client's memory or the server's state, and draw random "
                "numbers with ctx.random(like)",
            )
        if reads.places:
            self.refuse(
                function,
                "looks at the value of a tensor (if, float() or .item()): in a stack it is one number for "
                f"several clients; choose with torch.where, at {reads.places[0]}",
            )
        return result

    def named(self, function: str, result: Any) -> dict[str, Tensor]:
        """The tensors of a result by their names in messages, such as "memory['m']"."""
        parts, named = RETURNS[function], {}
        if function == "global_momentum" and result is None:
            return {}
        values = result if isinstance(result, tuple) else (result,)
        types = [Tensor if part in VECTORS else dict for part in parts]
        if len(values) != len(parts) or not all(map(isinstance, values, types)):
            wanted = ", ".join(
                f"{p} ({'a tensor' if p in VECTORS else 'a dict of tensors'})" for p in parts
            )
            given = ", ".join(type(v).__name__ for v in values)
            self.refuse(function, f"returns {given}, but must return {wanted}")
        for part, value in zip(parts, values, strict=True):
            named |= _flat({part: value})
        for name, value in named.items():
            if not isinstance(value, Tensor):
                self.refuse(
                    function, f"returns {name} as {type(value).__name__}, but it must be a tensor"
                )
            if function == "init_server" and value.isinf().any():
                self._infinite.add(name)
            finite = ~value.isnan() if name in self._infinite else value.isfinite()
            if name.startswith(FINITE) and not finite.all():
                self.refuse(
                    function,
                    f"returns {name} with values that are not finite; is there a division by 0?",
                )
        return named

    def must_be(self, function: str, name: str, value: Tensor, like: str, other: Tensor) -> None:
        """Shape, dtype and device are those of another tensor."""
        if kind(value) != kind(other):
            self.refuse_kind(function, name, value, f"{kind(other)}, as {like}")

    def refuse_kind(self, function: str, name: str, value: Tensor, wanted: str) -> NoReturn:
        self.refuse(function, f"returns {name} as {kind(value)}, but it must be {wanted}", "size")

    def refuse(self, function: str, words: str, doubt: Doubt | None = None) -> NoReturn:
        """`Broken`, with the place of the function."""
        written = inspect.unwrap(getattr(type(self.method), function))
        code = getattr(written, "__code__", None)
        place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
        raise Broken(f"{function}{place} {words}", doubt)

    def returned(self, function: str, call: Callable[[], Any]) -> Any:
        """Return the result of `call`; `Broken` names what it raises."""
        try:
            return call()
        except Exception as error:  # whatever the method raises
            frames = traceback.extract_tb(error.__traceback__)
            own = [f for f in frames if not f.filename.startswith(LIBRARIES)]
            place = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
            raise Broken(
                f"{function} raises {type(error).__name__}: {one_line(error)}{place}", "size"
            ) from error

    def _must_be_untouched(
        self,
        function: str,
        before: dict[str, Tensor],
        copies: dict[str, tuple[int, Tensor]],
        after: dict[str, Tensor],
    ) -> None:
        for name in before | after:
            value = before.get(name)
            if value is not None and value is after.get(name):
                version, copy = copies[name]
                if value._version == version and same(value, copy):
                    continue
            self.refuse(
                function,
                f"changes {name}, which it was given; make a new one: 0.9 * m instead of m.mul_(0.9), and "
                "{**memory, 'm': m} instead of memory['m'] = m",
            )


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """True if two tensors are equal, NaNs too."""
    if a is None or b is None or kind(a) != kind(b):
        return a is b
    return bool(((a == b) | ((a != a) & (b != b))).all())


def kind(value: Tensor) -> str:
    """Dtype and shape of a tensor, such as "float32 [2, 10]"."""
    device = "" if value.device.type == "cpu" else f" on {value.device}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}{device}"


def _flat(given: Given) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            flat |= {f"{name}[{n!r}]": v for n, v in value.items()}
        else:
            flat[name] = value
    return flat
