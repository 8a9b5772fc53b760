"""Checks of the arrays of a data set, in words; and a summary of what was read.

Shapes: n samples, H x W pixels, C channels, F features, L tokens.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rayfl.errors import ConfigError
from rayfl.text import brief

if TYPE_CHECKING:
    from rayfl.data.datasets import Dataset

refuse = partial(ConfigError, key="data.name")
_NAMED = 3  # of what was left out, and of the classes
_LOSS = 1e-3  # standard deviations of a feature that float32 may be off


def check_arrays(name: str, split: str, x: np.ndarray, y: np.ndarray) -> None:
    """ConfigError unless these are samples and labels, whatever their values."""
    if problem := _problem_of_arrays(x, y):
        raise refuse(f"the {split} data of {name!r} {problem}")


def check_precision(name: str, x: np.ndarray) -> None:
    """ConfigError if float32, which they become, is too coarse for train samples, such as 1.7e9 + 0..50.

    Of what is not finite or too large for float32, `check` says more.
    """
    if x.dtype.kind != "f" or x.dtype.itemsize <= 4 or x.ndim < 2 or x.size == 0:
        return
    columns = x.reshape(-1, x.shape[-1] if x.ndim != 3 else 1)  # three axes: grey images
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(columns - columns.astype(np.float32)).max(axis=0)
        std = columns.std(axis=0)
        varies = columns.max(axis=0) > columns.min(axis=0)
        coarse = np.flatnonzero(np.isfinite(off) & varies & (off > _LOSS * std))
    if len(coarse):
        k = coarse[0]
        raise refuse(
            f"feature {k} of the train data of {name!r} has mean {columns[:, k].mean():.6g} and "
            f"standard deviation {std[k]:.6g}, for which float32 is too coarse (off by {off[k]:.3g}); "
            "subtract an offset, such as the mean, from it"
        )


def check(dataset: "Dataset") -> None:
    """Raise ConfigError unless the arrays are as `Dataset` says."""
    for split in ("train", "test"):
        x, y, group = (getattr(dataset, f"{part}_{split}") for part in ("x", "y", "group"))
        check_arrays(dataset.name, split, x, y)
        if problem := _problem(dataset, x, y) or _group_problem(dataset, group, len(y)):
            raise refuse(f"the {split} data of {dataset.name!r} {problem}")
    shapes = dataset.x_train.shape[1:], dataset.x_test.shape[1:]
    if shapes[0] != shapes[1] or dataset.x_train.dtype != dataset.x_test.dtype:
        raise refuse(
            f"train and test samples of {dataset.name!r} differ: {shapes[0]} "
            f"{dataset.x_train.dtype} and {shapes[1]} {dataset.x_test.dtype}; make them alike"
        )
    if dataset.kind != "classes":
        _check_targets(dataset)
        _check_normalisation(dataset)
        return
    absent = np.flatnonzero(np.bincount(dataset.y_train, minlength=dataset.num_classes) == 0)
    if len(absent) or dataset.num_classes < 2:
        raise refuse(
            f"{dataset.name!r} needs 2 or more classes with train samples in each; "
            f"it has {dataset.num_classes}, without samples: {absent[:10].tolist()}; "
            "number the labels 0, 1, 2, ... without gaps"
        )
    _check_normalisation(dataset)


def _check_targets(dataset: "Dataset") -> None:
    """Tokens may be absent among the train samples; numbers must be of one width."""
    train, test = dataset.y_train, dataset.y_test
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise refuse(
            f"train and test targets of {dataset.name!r} differ: {train.shape[1:]} {train.dtype} and "
            f"{test.shape[1:]} {test.dtype}; make them alike"
        )
    if dataset.kind == "tokens" and dataset.num_classes < 2:
        raise refuse(f"{dataset.name!r} needs 2 or more tokens to predict")


def account(dataset: "Dataset") -> tuple[str, ...]:
    """Summary for users of what was read and what was left out, in lines."""
    train, test = dataset.x_train, dataset.x_test
    n = dataset.files
    files = "" if n is None else f" from {n:,} file{'s' if n != 1 else ''}"
    names = ", ".join(brief(name) for name in dataset.classes[:_NAMED])
    more = ", ..." if dataset.num_classes > _NAMED else ""
    targets = {
        "classes": f"{dataset.num_classes} classes ({names}{more})",
        "tokens": f"a token of {dataset.num_classes} ({names}{more}) to predict at each position",
        "numbers": f"{dataset.num_classes} number{'s' if dataset.num_classes > 1 else ''} to predict",
    }
    ranges = dict.fromkeys(f"{x.min():.6g} to {x.max():.6g}" for x in (train, test))
    size = " x ".join(map(str, dataset.sample_shape))
    kind = {1: "features", 3: "C x H x W"}[len(dataset.sample_shape)]
    kind = "integer tokens" if dataset.has_tokens else kind
    read = (
        f"read {len(train):,} train and {len(test):,} test samples{files}: "
        f"{targets[dataset.kind]}, {train.dtype} {size} ({kind}), "
        f"values {', test '.join(ranges)}"
    )
    if not dataset.left_out:
        return (read,)
    named = ", ".join(brief(name, 80) for name in dataset.left_out[:_NAMED])
    rest = len(dataset.left_out) - _NAMED
    more = f" and {rest:,} more" if rest > 0 else ""
    return read, f"left out {len(dataset.left_out):,}: {named}{more}"


def _problem_of_arrays(x: np.ndarray, y: np.ndarray) -> str | None:
    allowed = (np.float32, np.int64) if x.ndim == 2 else (np.uint8, np.float32)
    if x.ndim not in (2, 4) or x.dtype not in allowed:
        return (
            f"are {brief(str(x.dtype))} {list(x.shape)}; must be uint8 or float, "
            "[n, F], [n, H, W] or [n, H, W, C], or integer tokens, [n, L]"
        )
    is_token = x.dtype == np.int64 and y.dtype == np.int64 and y.shape == x.shape
    is_number = y.dtype == np.float32 and y.ndim == 2 and len(y) == len(x) and y.size
    if not (is_token or is_number) and (y.dtype != np.int64 or y.shape != (len(x),)):
        return (
            f"have labels {brief(str(y.dtype))} {list(y.shape)}; must be integers [{len(x)}], "
            f"one per sample; or integers [{len(x)}, L] for samples of L tokens, one to predict at each; or "
            f"floats [{len(x)}, D], numbers to predict"
        )
    if x.size == 0:
        return f"are empty: {list(x.shape)}"
    return None


def _problem(dataset: "Dataset", x: np.ndarray, y: np.ndarray) -> str | None:
    if y.dtype == np.float32:
        if not np.isfinite(y).all():
            return "have targets that are not finite in float32; remove or scale them"
    elif not 0 <= y.min() <= y.max() < dataset.num_classes:
        return (
            f"have labels from {y.min()} to {y.max()}; must be from 0 to {dataset.num_classes - 1}"
        )
    if x.dtype == np.float32 and not np.isfinite(x).all():
        return "have values that are not finite in float32; remove, fill or scale them"
    if not (x.flags.c_contiguous and y.flags.c_contiguous):
        return "are not C-contiguous; build the Dataset with from_arrays"
    return None


def _group_problem(dataset: "Dataset", group: np.ndarray | None, samples: int) -> str | None:
    if group is None:
        return None
    if group.dtype != np.int64 or group.shape != (samples,):
        return f"have groups {group.dtype} {list(group.shape)}; must be int64 [{samples}]"
    if not 0 <= group.min() <= group.max() < len(dataset.groups):
        return (
            f"have groups from {group.min()} to {group.max()}; must be from 0 to "
            f"{len(dataset.groups) - 1}, the number of a name in `groups`"
        )
    return None


def _check_normalisation(dataset: "Dataset") -> None:
    """After the data: mean and std of bad data are bad too, and the data are the better thing to name."""
    channels = (dataset.x_train.shape[-1],)
    if not dataset.mean.shape == dataset.std.shape == channels or not (dataset.std > 0).all():
        raise refuse(
            f"mean and std of {dataset.name!r} must have shape {channels} and std > 0, "
            f"not {dataset.mean} and {dataset.std}"
        )
    if dataset.has_tokens and (dataset.mean.any() or (dataset.std != 1).any()):
        raise refuse(
            f"the samples of {dataset.name!r} are integer tokens, which are not normalised; "
            "mean must be 0 and std 1"
        )
