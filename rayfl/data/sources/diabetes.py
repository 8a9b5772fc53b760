"""Patients with diabetes: real numbers to predict a number from, which need no download.

Efron, Hastie, Johnstone and Tibshirani, "Least Angle Regression", Annals of Statistics 2004.
"""

from dataclasses import dataclass
from importlib.metadata import distribution

import numpy as np

from rayfl.data.datasets import Dataset, Source, from_arrays


@dataclass(frozen=True, kw_only=True)
class Diabetes(Source):
    """442 patients: 10 measurements, and how the disease went on in a year; they come with scikit-learn."""

    def read(self) -> Dataset:
        x, y = _read("diabetes_data_raw.csv.gz"), _read("diabetes_target.csv.gz")
        # Every fifth patient in the order of the target is a test sample: stratified, and the same for ever.
        rank = np.empty(len(y), np.int64)
        rank[np.argsort(y, kind="stable")] = np.arange(len(y))
        test = rank % 5 == 4
        # Standardised, as the model sees x: a squared error of 1 is that of the mean.
        y = ((y - y[~test].mean()) / y[~test].std())[:, None]
        return from_arrays("diabetes", (x[~test], y[~test]), (x[test], y[test]), files=2)


def _read(name: str) -> np.ndarray:
    """The numbers in a file that sklearn.datasets.load_diabetes reads; to import it takes a second."""
    file = distribution("scikit-learn").locate_file(f"sklearn/datasets/data/{name}")
    return np.loadtxt(str(file))
