"""Arrays in a NumPy file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Source, from_arrays
from rayfl.errors import ConfigError, reason


@dataclass(frozen=True, kw_only=True)
class NPZ(Source):
    """Arrays x_train, y_train, x_test and y_test in one NumPy .npz file."""

    path: Annotated[str, Field(description="the .npz file; x: uint8 or float, [n, F] or images")]

    def read(self) -> Dataset:
        file = Path(self.path).expanduser().absolute()
        names = ("x_train", "y_train", "x_test", "y_test")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                x_train, y_train, x_test, y_test = (arrays[name] for name in names)
        except Exception as error:  # NumPy has many: no file, no zip, a missing name, objects
            raise ConfigError(
                f"data.path = {self.path!r}: cannot read {file} ({reason(error)}); expected "
                f"an .npz file with the numeric arrays {', '.join(names)}"
            ) from error
        return from_arrays(file.stem, (x_train, y_train), (x_test, y_test))
