"""The number of a local step where it is no fixed number: in a recording that is replayed for other steps.

A recorded step has the numbers of the moment of its recording in it. Those that follow from the step's own
number have a place on the device instead, which is filled before every replay.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Number = int | float
# A comparison must come out the same for all steps up to this one; later ones are recorded apart.
MOST_STEPS = 10_000
DIVISIONS = (Tensor.__truediv__, Tensor.div, torch.div)
POWERS = (Tensor.__pow__, Tensor.__rpow__, Tensor.pow, torch.pow)
PLACES = 32  # numbers of one recording, of each type


class Places:
    """The places of one recording's numbers, in the order in which the step asks for them."""

    def __init__(self, like: Tensor):
        # Not made while a step is recorded: a recording would make them anew in every replay.
        self._tensors = {
            dtype: torch.zeros(PLACES, dtype=dtype, device=like.device)
            for dtype in {like.dtype, torch.int64}
        }
        self._numbers: dict[torch.dtype, list[Callable[[int], Number]]] = {
            dtype: [] for dtype in self._tensors
        }
        self._asked = dict.fromkeys(self._tensors, 0)
        self._recording = False
        self.k = 1
        self.only_here = False
        """True if something depends on the step in another way: its recording is no other step's."""

    def step(self, k: int, recording: bool = False) -> "StepNumber":
        """The number k, for a step that is taken or recorded now."""
        self.k, self._recording = k, recording
        self._asked = dict.fromkeys(self._tensors, 0)
        return StepNumber(int, self)

    def fill(self, k: int) -> None:
        """Put the numbers of step k in their places."""
        for dtype, numbers in self._numbers.items():
            for i, number in enumerate(numbers):
                self._tensors[dtype][i].fill_(number(k))

    def place(self, number: Callable[[int], Number], dtype: torch.dtype) -> Tensor | Number:
        """A scalar tensor with the number; the number itself where there is no place for it."""
        if dtype not in self._tensors or self._asked[dtype] == PLACES:
            self.only_here = True
            return number(self.k)
        i, known = self._asked[dtype], self._numbers[dtype]
        self._asked[dtype] += 1
        place = self._tensors[dtype][i]
        if i == len(known) and not self._recording:
            known.append(number)
            place.fill_(number(self.k))
        return place


class StepNumber:
    """A number that follows from that of the local step. It behaves as the number would.

    With numbers it makes numbers of the same kind, with tensors it is a scalar tensor. Comparisons that do
    not come out the same for all steps but the first, and whatever needs the number itself (an index, a
    format), bind the recording to its step.
    """

    __slots__ = ("_number", "_places")

    def __init__(self, number: Callable[[int], Number], places: Places):
        self._number, self._places = number, places

    def on(self, like: Tensor) -> Tensor:
        """Return it as a scalar tensor of the type of `like`."""
        placed = self._places.place(self._number, like.dtype)
        return placed if isinstance(placed, Tensor) else like.new_full((), placed)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Let functions of tensors take it as a scalar tensor."""
        if function in DIVISIONS and len(args) == 2 and isinstance(args[1], StepNumber):
            return args[1]._combine(operator.truediv, args[0], swapped=True)
        like = next(value for value in args if isinstance(value, Tensor))
        # torch has kernels of its own for some numbers, such as squares.
        bound = function in POWERS

        def placed(value: Any) -> Any:
            if not isinstance(value, StepNumber):
                return value
            return value._itself() if bound else value.on(like)

        given = {name: placed(value) for name, value in (kwargs or {}).items()}
        return function(*map(placed, args), **given)

    def _combine(self, operation: Callable[[Any, Any], Any], other: Any, swapped: bool) -> Any:
        do = (lambda a, b: operation(b, a)) if swapped else operation
        mine = self._number
        if isinstance(other, Tensor):
            if operation is operator.truediv and swapped and other.is_cuda:
                # As torch divides by a number there: by multiplication.
                return other * self._places.place(
                    lambda k: float(np.float32(1) / np.float32(mine(k))), other.dtype
                )
            if operation is operator.truediv and not swapped:  # as torch divides numbers by tensors
                return other.reciprocal() * self._places.place(mine, other.dtype)
            bound = operation is operator.pow
            return do(self._itself() if bound else self._places.place(mine, other.dtype), other)
        if isinstance(other, StepNumber):
            theirs = other._number
            return StepNumber(lambda k: do(mine(k), theirs(k)), self._places)
        if isinstance(other, int | float):
            return StepNumber(lambda k: do(mine(k), other), self._places)
        return NotImplemented

    def _compare(self, operation: Callable[[Any, Any], Any], other: Any) -> Any:
        if isinstance(other, Tensor):
            return operation(self._places.place(self._number, other.dtype), other)
        theirs = other._number if isinstance(other, StepNumber) else lambda k: other
        first = operation(self._number(1), theirs(1))
        if any(operation(self._number(k), theirs(k)) != first for k in range(2, MOST_STEPS)):
            self._places.only_here = True
        return operation(self._number(self._places.k), theirs(self._places.k))

    def _itself(self) -> Any:
        self._places.only_here = True
        return self._number(self._places.k)

    def __neg__(self) -> Any:
        return self._combine(operator.mul, -1, swapped=False)

    def __bool__(self) -> bool:
        return self != 0

    def __int__(self) -> int:
        return int(self._itself())

    def __index__(self) -> int:
        return operator.index(self._itself())

    def __float__(self) -> float:
        return float(self._itself())

    def __hash__(self) -> int:
        return hash(self._itself())

    def __repr__(self) -> str:
        return repr(self._itself())

    def __format__(self, spec: str) -> str:
        return format(self._itself(), spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._itself(), name)


def _method(operation: Callable[[Any, Any], Any], swapped: bool) -> Callable[[Any, Any], Any]:
    return lambda self, other: self._combine(operation, other, swapped)


def _comparison(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: self._compare(operation, other)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(StepNumber, f"__{_name}__", _method(getattr(operator, _name), swapped=False))
    setattr(StepNumber, f"__r{_name}__", _method(getattr(operator, _name), swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(StepNumber, f"__{_name}__", _comparison(getattr(operator, _name)))
