"""Text as tokens: windows to predict the next token in, and texts of one length.

Shapes: n windows or texts of L tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Characters(NamedTuple):
    """Texts whose tokens are characters."""

    tokens: list[np.ndarray]  # int64, of each text: 0..len(vocabulary)-1
    vocabulary: tuple[str, ...]  # all characters of these texts, sorted


class Windows(NamedTuple):
    """Windows of several texts."""

    x: np.ndarray  # int64 [n, L]
    y: np.ndarray  # int64 [n, L]: the token after each one of x
    text: np.ndarray  # [n]: name of the text that each window is from


def characters(texts: Iterable[str]) -> Characters:
    """Number the characters of texts in the order of Unicode."""
    points = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4") for text in texts]
    known = np.unique(np.concatenate([np.unique(of_text) for of_text in points]))
    tokens = [np.searchsorted(known, of_text).astype(np.int64) for of_text in points]
    return Characters(tokens, tuple(map(chr, known.tolist())))


def joined(parts: Sequence[np.ndarray], names: np.ndarray) -> dict[str, np.ndarray]:
    """The texts of these names `[parts]`, each of its parts in their order."""
    texts: dict[str, list[np.ndarray]] = {}
    for name, part in zip(names.tolist(), parts, strict=True):
        texts.setdefault(str(name), []).append(part)
    return {name: np.concatenate(of_text) for name, of_text in texts.items()}


def cut(
    texts: Mapping[str, np.ndarray], length: int, test_share: float = 0.0, least: int = 1
) -> tuple[Windows, Windows, list[str]]:
    """Consecutive windows of texts: for training, for testing (the end of each text), and what is left out.

    Texts of fewer than `least` windows are left out; so is the end of a text that fills no window.
    """
    parts: tuple[list[Windows], list[Windows]] = [], []
    left_out: list[str] = []
    for name, tokens in texts.items():
        n = max(len(tokens) - 1, 0) // length
        if n < least:
            left_out.append(f"{name}: {n} windows")
            continue
        x, y = (tokens[shift : shift + n * length].reshape(n, length) for shift in (0, 1))
        first = n - int(n * test_share)
        for part, rows in zip(parts, (slice(first), slice(first, n)), strict=True):
            part.append(Windows(x[rows], y[rows], np.full(len(x[rows]), name)))
    none = np.empty((0, length), np.int64)
    train, test = (
        Windows(*map(np.concatenate, zip(*part, strict=True)))
        if part
        else Windows(none, none, np.empty(0, str))
        for part in parts
    )
    return train, test, left_out


def padded(texts: Sequence[np.ndarray], length: int, padding: int) -> np.ndarray:
    """The first tokens of each text, `[n, length]`; short texts are filled up at their end."""
    filled = np.full((len(texts), length), padding, np.int64)
    for row, tokens in zip(filled, texts, strict=True):
        row[: len(tokens)] = tokens[:length]
    return filled
