"""Arrays in a NumPy file."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Source, from_arrays
from rayfl.errors import ConfigError, reason
from rayfl.text import absolute, printable

_NAMES = ("x_train", "y_train", "x_test", "y_test")
_GROUPS = ("group_train", "group_test")
_CHANNELS = (1, 3, 4)  # grey, colour, colour and transparency: what images usually have


@dataclass(frozen=True, kw_only=True)
class NPZ(Source):
    """Arrays x_train, y_train, x_test and y_test in one NumPy .npz file; x: features, images or tokens.

    group_train and group_test, if they are there, have the name or number of each sample's group.
    """

    path: Annotated[
        str,
        Field(
            description="the .npz file; x: uint8 or float, [n, F] or images; or integer tokens, [n, L]"
        ),
    ]
    layout: Annotated[
        Literal["channels_last", "channels_first"] | None,
        Field(
            description="of images, [n, H, W, C] or [n, C, H, W]; null: C last, if that is clear"
        ),
    ] = None

    def read(self) -> Dataset:
        file = absolute(self.path)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                x_train, y_train, x_test, y_test = (arrays[name] for name in _NAMES)
                groups = {name: arrays[name] for name in _GROUPS if name in arrays}
                others = sorted(set(arrays.files) - {*_NAMES, *_GROUPS})
        except Exception as error:  # NumPy has many: no file, no zip, a missing name, objects
            raise ConfigError(
                f"cannot read {printable(str(file))} ({reason(error)}); expected "
                f"an .npz file with the numeric arrays {', '.join(_NAMES)}",
                key="data.path",
                value=self.path,
            ) from error
        x_train, x_test = self._channels_last(x_train), self._channels_last(x_test)
        return from_arrays(
            file.stem,
            (x_train, y_train),
            (x_test, y_test),
            groups=self._groups(groups, len(y_train), len(y_test)),
            files=1,
            left_out=others,
        )

    def _groups(
        self, found: dict[str, np.ndarray], train: int, test: int
    ) -> tuple[np.ndarray, np.ndarray | None] | None:
        """The groups of so many samples, if any; ConfigError if they are none."""
        for name, samples in zip(_GROUPS, (train, test), strict=True):
            groups = found.get(name)
            if groups is not None and (
                groups.shape != (samples,) or groups.dtype.kind not in "biuU"
            ):
                raise ConfigError(
                    f"{name} is {groups.dtype} {list(groups.shape)}; it must have the name or the number of "
                    f"each sample's group, [{samples}]",
                    key="data.path",
                    value=self.path,
                )
        if "group_train" not in found:
            if found:
                raise ConfigError(
                    "group_test is there without group_train", key="data.path", value=self.path
                )
            return None
        return found["group_train"], found.get("group_test")

    def _channels_last(self, x: np.ndarray) -> np.ndarray:
        """The array with the layout of a Dataset; ConfigError if it is not clear which it has."""
        if x.ndim != 4:
            return x
        first, last = x.shape[1] in _CHANNELS, x.shape[3] in _CHANNELS
        if self.layout is None and (first or not last):
            raise ConfigError(
                f"it is not clear which axis of the images {list(x.shape)} in "
                f"{self.path!r} has the channels; set it to 'channels_last' or 'channels_first'",
                key="data.layout",
                value=None,
            )
        return np.moveaxis(x, 1, -1) if self.layout == "channels_first" else x
