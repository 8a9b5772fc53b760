"""Splits of a Hugging Face data set: as they are published, or cut from the train split."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rayfl.data.huggingface.columns import Split
from rayfl.errors import ConfigError, Refuse, reason
from rayfl.text import absolute, here_or_on_the_hub

_FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_SAVED = ("state.json", "dataset_dict.json")  # in a directory that `save_to_disk` made


def load_splits(path: str, subset: str | None, revision: str | None) -> dict[str, Split]:
    """All splits by name; a data set without splits is `train`. Raises ConfigError about data.path."""
    refuse = partial(ConfigError, key="data.path", value=path)
    try:
        import datasets  # takes seconds to import
    except ImportError as error:
        raise ConfigError(
            "needs the package datasets; install it with `pip install 'rayfl[hf]'`",
            key="data.name",
            value="hf",
        ) from error
    shows = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        found = _load(path, subset, revision, refuse)
    except ConfigError:
        raise
    except Exception as error:  # whatever the network or damaged files make the library raise
        raise refuse(
            f"cannot be read by `datasets` ({reason(error)}); give a directory or file that is there, or a "
            "name on the Hub and a network"
        ) from error
    finally:
        if shows:
            datasets.enable_progress_bars()
    named = {"train": found} if isinstance(found, datasets.Dataset) else found
    splits = {str(name): Split(str(name), data, refuse) for name, data in named.items()}
    for split in splits.values():
        if not len(split.data):
            raise split.error("has no rows")
    return splits


def cut_test(labels: np.ndarray, groups: np.ndarray | None, share: float) -> np.ndarray:
    """True for each sample `[n]` of a split that is to be a test sample; it depends on the data alone.

    Every (1 / share)-th of each group, in the order of the classes: a fair share of each group and class.
    """
    group = np.zeros(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = np.lexsort((labels if labels.ndim == 1 else np.zeros(len(labels)), group))
    rank = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    is_test = np.empty(len(order), bool)
    # From the middle of each stretch: from its end, the last class would have more than its share.
    is_test[order] = np.floor((rank + 1) * share + 0.5) > np.floor(rank * share + 0.5)
    return is_test


def _load(path: str, subset: str | None, revision: str | None, refuse: Refuse) -> Any:
    import datasets

    place = absolute(path)
    name = here_or_on_the_hub(path)
    if name is None:
        raise refuse(f"there is no {place}, and no name on the Hub looks so")
    if name == path and not place.exists():
        return datasets.load_dataset(name, subset, revision=revision)
    if revision is not None:
        raise ConfigError(
            f"belongs to a name on the Hub, and {path!r} is here; leave it out",
            key="data.revision",
            value=revision,
            keys=("data.path",),
        )
    if place.is_file():
        return datasets.load_dataset(_kind_of(place, refuse), data_files=str(place))
    if any((place / name).exists() for name in _SAVED):
        return datasets.load_from_disk(str(place))
    return datasets.load_dataset(str(place), subset)


def _kind_of(file: Path, refuse: Refuse) -> str:
    kind = _FILES.get(file.suffix.lower())
    if kind is None:
        raise refuse(f"the name of a file must end in one of {', '.join(_FILES)}")
    return kind
