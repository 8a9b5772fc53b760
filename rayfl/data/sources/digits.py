"""The digits of scikit-learn: real data that need no download."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution

import numpy as np

from rayfl.data.datasets import Dataset, Source, from_arrays


@cache
def _rows() -> np.ndarray:
    """Read the pixels and the class of every image, `[1797, 65]`; to be left as they are."""
    # The file of sklearn.datasets.load_digits; to import scikit-learn for it takes a second.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    return np.loadtxt(str(file), delimiter=",")


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """1,797 real handwritten digits of 8 x 8 pixels; they come with scikit-learn."""

    def read(self) -> Dataset:
        rows = _rows()
        flat, y = rows[:, :-1], rows[:, -1].astype(np.int64)
        x = np.rint(flat * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)  # 0..16 -> 0..255
        # Every fifth sample of each class is a test sample: stratified, and the same for ever.
        by_class = np.argsort(y, kind="stable")
        rank = np.empty_like(y)
        rank[by_class] = np.arange(len(y)) - np.searchsorted(y[by_class], y[by_class])
        test = rank % 5 == 4
        return from_arrays("digits", (x[~test], y[~test]), (x[test], y[test]), files=1)
