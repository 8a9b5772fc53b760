"""Make the images of the benchmark: `python -m benchmarks.gpu_parts.images FILE.npz [PARQUET_FOLDER]`.

CIFAR-10's parquet files are decoded once, for every process to read; without them the images are random.
"""

import os
import sys
from pathlib import Path

import numpy as np


def random_images(samples: int = 2000, size: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Images whose mean brightness says which of ten classes they are, a tenth of them to test."""
    rng = np.random.default_rng(seed)
    y = np.arange(samples) % 10
    noise = rng.integers(0, 120, (samples, size, size, 3))
    x = (noise + 12 * y[:, None, None, None]).astype(np.uint8)
    n = samples - samples // 10
    return {"x_train": x[:n], "y_train": y[:n], "x_test": x[n:], "y_test": y[n:]}


def decoded(folder: str) -> dict[str, np.ndarray]:
    """The images of a folder of parquet files."""
    from rayfl.data.sources.parquet import Parquet

    data = Parquet(path=folder).load()
    return {name: getattr(data, name) for name in ("x_train", "y_train", "x_test", "y_test")}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the file in one go: it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, **arrays)  # pyright: ignore
    partial.rename(path)


if __name__ == "__main__":
    file, *folder = sys.argv[1:]
    write(Path(file), decoded(*folder) if folder else random_images())
