"""Find reads of a tensor of several clients as one Python value: an `if` on it, float() or .item().

All clients of a stack would then take the same branch, but no value tells so: in a short check the branch may
never be taken. So the tensors themselves are followed, from what a function is given to what it looks at.
"""

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions that give one Python value for a whole tensor.
READS = ("__bool__", "__float__", "__int__", "__index__", "item", "equal", "allclose")


class ValueReads(TorchFunctionMode):
    """While on, follows `tensors`, which have a row for each client, and what is made of them.

    A row that is taken out with a number or a loop is one client's, and may be looked at.
    """

    def __init__(self, tensors: Iterable[Tensor], libraries: tuple[str, ...]):
        super().__init__()
        self._libraries = libraries
        self._followed = {id(t): t for t in tensors}  # kept, so that no other gets the id
        # Places of reads, "file:line"; those in `libraries` only check their input.
        self.places: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not any(id(t) in self._followed for t in _tensors([*args, *kwargs.values()])):
            return result
        if func.__name__ in READS:
            caller = sys._getframe(1)
            if not caller.f_code.co_filename.startswith(self._libraries):
                self.places.append(f"{caller.f_code.co_filename}:{caller.f_lineno}")
        elif not _takes_a_row(func.__name__, args):
            self._followed |= {id(t): t for t in _tensors([result])}
        return result


def _takes_a_row(name: str, args: tuple[Any, ...]) -> bool:
    if name != "__getitem__":
        return name == "unbind"  # also what a loop does
    first = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
    return isinstance(first, int)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors in `values`, and in lists and tuples there."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
