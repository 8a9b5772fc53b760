"""Data sets of the Hugging Face Hub and of local files, by the `datasets` library.

Images, numbers or text to a class or a number; or text to its own next token, in windows. A file, a
directory that `save_to_disk` made, a directory of files and a name of the Hub are all read in one way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from rayfl.data.datasets import Dataset, Source, from_arrays
from rayfl.data.huggingface.columns import Kind, Split
from rayfl.data.huggingface.splits import cut_test, load_splits
from rayfl.data.huggingface.tokens import tokenise
from rayfl.data.images import decode
from rayfl.data.text import Windows, cut, joined, padded
from rayfl.data.trees import name_of
from rayfl.errors import ConfigError
from rayfl.text import absolute

_INPUTS: tuple[Kind, ...] = ("image", "numbers", "text")  # where all are there, the first is taken
_LABELS: tuple[Kind, ...] = ("classes", "integers", "text", "floats")


class _Part(NamedTuple):
    """The samples of train or test."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray | None  # [n], names

    def rows(self, wanted: np.ndarray) -> "_Part":
        group = None if self.group is None else self.group[wanted]
        return _Part(self.x[wanted], self.y[wanted], group)


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Source):
    """A data set of Hugging Face's library `datasets`: of the Hub, of a directory or of a file."""

    path: Annotated[
        str,
        Field(
            description="name on the Hub, a directory of save_to_disk, or a directory or file of "
            "parquet, json or csv"
        ),
    ]
    subset: Annotated[str | None, Field(description="its configuration, if it has several")] = None
    revision: Annotated[str | None, Field(description="commit or tag of a name on the Hub")] = None
    train_split: Annotated[str, Field(description="split to train on")] = "train"
    test_split: Annotated[
        str, Field(description="split to test on; if there is no test: a share of the train split")
    ] = "test"
    test_share: Annotated[
        float, Field(gt=0, lt=1, description="test share of the train split, if there is no test")
    ] = 0.2
    input_column: Annotated[
        str | None,
        Field(description="column of images, arrays or text; found by its type if not given"),
    ] = None
    feature_columns: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None,
        Field(description="columns of numbers, instead of an input column"),
    ] = None
    label_column: Annotated[
        str | None,
        Field(
            description="column of classes (integers, text) or numbers (floats); null: found by its "
            "type; for text: the next tokens are to be predicted"
        ),
    ] = None
    group_column: Annotated[
        str | None, Field(description="column of the writers, hospitals or roles; integers or text")
    ] = None
    size: Annotated[
        int | None,
        Field(ge=1, le=4096, description="images are resized to size x size; null: as they are"),
    ] = None
    tokens: Annotated[
        str,
        Field(description="of text: characters, the directory of a tokenizer, or a tokenizer.json"),
    ] = "characters"
    length: Annotated[
        int, Field(ge=1, le=10**5, description="tokens of a text, or of a window of it")
    ] = 64

    def read(self) -> Dataset:
        splits, left_out = self._splits()
        inputs, group = self._inputs(splits[0]), None
        label = self._label(splits[0], inputs)
        if self.group_column is not None:
            group = self._column("group_column", self.group_column, splits[0], "integers", "text")
        for name in filter(None, (*inputs, label, group)):
            if name != group or group in splits[-1].columns:  # the test set's groups may be unknown
                splits[-1].check_like(splits[0], name)
        if label is None:
            return self._next_tokens(splits, inputs[0], left_out)
        xs, frames = self._samples(splits, inputs)
        ys, classes = self._targets(splits, label)
        groups = [self._groups(split) for split in splits]
        parts = [_Part(*of_split) for of_split in zip(xs, ys, groups, strict=True)]
        if len(parts) == 1:
            (whole,) = parts
            is_test = cut_test(whole.y, whole.group, self.test_share)
            if not is_test.any():
                raise ConfigError(
                    f"is no sample of {len(is_test)}, or of those of each group; raise it",
                    key="data.test_share",
                    value=self.test_share,
                )
            parts = [whole.rows(~is_test), whole.rows(is_test)]
        return self._dataset(parts, classes, [*left_out, *frames])

    def _splits(self) -> tuple[list[Split], list[str]]:
        """The train split, the test split if there is one; and what else there is."""
        known = load_splits(self.path, self.subset, self.revision)
        for key in ("train_split", "test_split"):
            name = getattr(self, key)
            if name not in known and (key, name) != ("test_split", "test"):
                raise ConfigError(
                    f"must be one of the splits of {self.path!r}, {sorted(known)}",
                    key=f"data.{key}",
                    value=name,
                )
        wanted = (self.train_split, self.test_split)
        if wanted[0] == wanted[1]:
            raise ConfigError(
                "is the split to train on", key="data.test_split", value=self.test_split
            )
        others = sorted(known.keys() - set(wanted))
        return [known[name] for name in wanted if name in known], [f"split {n}" for n in others]

    def _inputs(self, train: Split) -> list[str]:
        """The columns of the samples: one, or several of numbers."""
        if self.feature_columns is not None:
            if self.input_column is not None:
                raise ConfigError(
                    f"data.input_column = {self.input_column!r} is given too",
                    key="data.feature_columns",
                    value=list(self.feature_columns),
                    hint="give only one of the two",
                    keys=("data.input_column",),
                )
            kinds: tuple[Kind, ...] = ("integers", "floats")
            return [self._column("feature_columns", c, train, *kinds) for c in self.feature_columns]
        if self.input_column is not None:
            return [self._column("input_column", self.input_column, train, *_INPUTS)]
        taken = {self.label_column, self.group_column}
        for kind in _INPUTS:
            if fitting := [name for name in train.of_kind(kind) if name not in taken]:
                return [self._column("input_column", self._only(fitting), train, kind)]
        return [self._column("input_column", None, train, *_INPUTS)]

    def _label(self, train: Split, inputs: list[str]) -> str | None:
        """The column of the targets; None: the next tokens of texts."""
        if self.label_column is not None:
            return self._column("label_column", self.label_column, train, *_LABELS)
        if train.kind(inputs[0]) == "text":
            return None
        taken = {*inputs, self.group_column}
        for kind in ("classes", "integers"):
            if fitting := [name for name in train.of_kind(kind) if name not in taken]:
                return self._column("label_column", self._only(fitting), train, kind)
        return self._column("label_column", None, train, *_LABELS)

    def _only(self, fitting: list[str]) -> str | None:
        return fitting[0] if len(fitting) == 1 else None

    def _column(self, option: str, name: str | None, train: Split, *kinds: Kind) -> str:
        """The column of this name, if it is of such a kind."""
        fitting = train.of_kind(*kinds)
        if name is None or name not in fitting:
            raise ConfigError(
                f"must be one of the columns of a fitting type, {fitting}; all columns of {self.path!r} are "
                f"{train.columns}"
                + ("; or give data.feature_columns" if option == "input_column" else ""),
                key=f"data.{option}",
                value=name,
            )
        return name

    def _samples(
        self, splits: list[Split], inputs: list[str]
    ) -> tuple[list[np.ndarray], list[str]]:
        """The samples of each split, and the images of which the first frame alone is taken."""
        if self.feature_columns is not None:
            return [
                np.stack([s.numbers(name).astype(np.float64) for name in inputs], axis=1)
                for s in splits
            ], []
        (name,) = inputs
        kind = splits[0].kind(name)
        if kind == "numbers":
            return [split.numbers(name) for split in splits], []
        if kind == "text":
            return self._texts(splits, name), []
        found = [decode(partial(split.images, name), split.refuse, self.size) for split in splits]
        frames = [f"{where} (all but its first frame)" for d in found for where in d.animated]
        return [decoded.pixels for decoded in found], frames

    def _texts(self, splits: list[Split], name: str) -> list[np.ndarray]:
        """Texts of `length` tokens each."""
        batches = (texts for split in splits for texts in split.texts(name))
        tokens = tokenise(batches, self.tokens, self.length)
        if tokens.padding is None:
            raise ConfigError(
                "has no token that fills up short texts; set its pad_token and save it again",
                key="data.tokens",
                value=self.tokens,
            )
        first = len(splits[0].data)
        parts = tokens.texts[:first], tokens.texts[first:]
        return [padded(texts, self.length, tokens.padding) for texts in parts[: len(splits)]]

    def _targets(
        self, splits: list[Split], label: str
    ) -> tuple[list[np.ndarray], list[str] | tuple[()]]:
        """The targets of each split and the names of the classes, () for numbers."""
        kind = splits[0].kind(label)
        if kind == "floats":
            return [split.numbers(label)[:, None] for split in splits], ()
        ys = [split.names(label) for split in splits]
        if kind == "classes":
            return ys, splits[0].class_names(label)
        known, train = np.unique(ys[0], return_inverse=True)
        if unknown := sorted(set(ys[-1].tolist()) - set(known.tolist())):
            raise splits[-1].error(f"has classes in {label!r} without train samples: {unknown[:3]}")
        numbered = [train, *(np.searchsorted(known, y) for y in ys[1:])]
        return numbered, [str(name) for name in known.tolist()]

    def _next_tokens(self, splits: list[Split], name: str, left_out: list[str]) -> Dataset:
        """Windows of each group's text, whose targets are the tokens after each one."""
        rows = ([f"{text}\n" for text in texts] for split in splits for texts in split.texts(name))
        tokens = tokenise(rows, self.tokens)
        first, parts = 0, list[Windows]()
        for split in splits:
            of_split = tokens.texts[first : first + len(split.data)]
            names = self._groups(split)
            texts = joined(of_split, np.full(len(of_split), "the text") if names is None else names)
            share = self.test_share if len(splits) == 1 else 0.0
            train, test, short = cut(texts, self.length, share)
            parts += [train, test] if len(splits) == 1 else [train]
            left_out = [*left_out, *short]
            first += len(of_split)
        train, test = parts
        if not (len(train.x) and len(test.x)):
            raise ConfigError(
                f"the texts fill {len(train.x)} windows of so many tokens to train on, and {len(test.x)} to "
                "test on; lower it, or give more text",
                key="data.length",
                value=self.length,
            )
        known = [self.group_column in split.columns for split in (splits[0], splits[-1])]
        found = [
            _Part(w.x, w.y, w.text if is_known else None)
            for w, is_known in zip(parts, known, strict=True)
        ]
        return self._dataset(found, tokens.vocabulary, left_out)

    def _groups(self, split: Split) -> np.ndarray | None:
        """The groups of a split, if it has their column; None: they are not known."""
        name = self.group_column
        return split.names(name) if name is not None and name in split.columns else None

    def _dataset(self, parts: list[_Part], classes: Sequence[str], left_out: list[str]) -> Dataset:
        train, test = parts
        return from_arrays(
            name_of(absolute(self.path)),
            (train.x, train.y),
            (test.x, test.y),
            classes=classes,
            groups=None if train.group is None else (train.group, test.group),
            left_out=left_out,
        )
