"""Pack a model for the processes that train it: as bytes, without its weights.

Passes bring their own parameters, so of a model only its code, its frozen parts and its buffers need to
arrive.
"""

import contextlib
import copyreg
import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import torch
from torch import nn
from torch.nn.utils import parametrize


def packed(model: nn.Module) -> bytes:
    """The model with zeros for its trainable parameters, which take no room. Raises what pickling raises.

    It is pickled as it is, not a copy: functions that refer to the model (hooks, say) would refer to the
    original still.
    """
    for part in model.modules():
        if parametrize.is_parametrized(part):
            # PyTorch makes a class of its own for each of these and refuses to pickle them, for weights
            # that shall be kept for long; these are read at once, by the same version.
            copyreg.pickle(type(part), _reduced)
    with _weightless(model):
        return cloudpickle.dumps(model)


def unpacked(parcel: bytes) -> nn.Module:
    """The model that was `packed`."""
    return pickle.loads(parcel)


@contextlib.contextmanager
def _weightless(model: nn.Module) -> Iterator[None]:
    """While it is entered, trainable parameters are zeros that take no memory."""
    weights = [(p, p.data) for p in model.parameters() if p.requires_grad]
    try:
        for parameter, weight in weights:
            parameter.data = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
        yield
    finally:
        for parameter, weight in weights:
            parameter.data = weight


def _reduced(part: nn.Module) -> tuple[Any, ...]:
    return copyreg.__newobj__, (type(part),), part.__dict__  # pyright: ignore
