"""Texts of a Hugging Face data set as tokens: characters, or those of a local tokenizer."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from rayfl.data.text import characters
from rayfl.errors import ConfigError, reason
from rayfl.text import absolute

CHARACTERS = "characters"


class TokenisedTexts(NamedTuple):
    """Texts as tokens."""

    texts: list[np.ndarray]  # int64, of each text
    vocabulary: tuple[str, ...]  # by the number of the token
    padding: int | None  # the token that fills up short texts; None: there is none


class _Tokenizer(NamedTuple):
    # Texts -> tokens. A length: with the tokens of their beginning and end, and no more than so many.
    encode: Callable[[list[str], int | None], list[list[int]]]
    vocabulary: dict[str, int]
    padding: int | None


def tokenise(
    batches: Iterable[list[str]], tokens: str, length: int | None = None
) -> TokenisedTexts:
    """The tokens of texts, which come in batches, by the option `data.tokens`.

    `length`: the texts are samples, of so many tokens at most; None: they are parts of longer texts.
    Raises ConfigError if there is no such tokenizer.
    """
    if tokens == CHARACTERS:
        found, vocabulary = characters(chain.from_iterable(batches))
        if length is None:
            return TokenisedTexts(found, vocabulary, None)
        return TokenisedTexts([text[:length] + 1 for text in found], ("", *vocabulary), 0)
    tokenizer = _tokenizer(tokens)
    names = {number: name for name, number in tokenizer.vocabulary.items()}
    return TokenisedTexts(
        [np.array(text, np.int64) for text in _encoded(tokenizer, batches, length)],
        tuple(names.get(number, f"<{number}>") for number in range(max(names) + 1)),
        tokenizer.padding,
    )


def _encoded(
    tokenizer: _Tokenizer, batches: Iterable[list[str]], length: int | None
) -> Iterator[list[int]]:
    for texts in batches:
        yield from tokenizer.encode(texts, length)


def _tokenizer(path: str) -> _Tokenizer:
    refuse = partial(ConfigError, key="data.tokens", value=path)
    place = absolute(path)
    if not (place.is_file() or place.is_dir()):
        raise refuse(
            f"must be '{CHARACTERS}', the directory of a tokenizer, or a file tokenizer.json; "
            "there is no such file or directory"
        )
    try:
        return _of_file(str(place)) if place.is_file() else _of_folder(str(place))
    except ImportError as error:
        raise refuse(
            "needs the package transformers; install it with `pip install 'rayfl[hf]'`"
        ) from error
    except Exception as error:  # whatever a damaged file raises
        raise refuse(
            f"cannot be read as a tokenizer ({reason(error)}); save one there with its "
            "save_pretrained()"
        ) from error


def _of_folder(folder: str) -> _Tokenizer:
    from transformers import AutoTokenizer  # slow to import

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )

    def encode(texts: list[str], length: int | None) -> list[list[int]]:
        samples = length is not None
        return tokenizer(
            texts,
            add_special_tokens=samples,
            truncation=samples,
            max_length=length,
            verbose=False,
        )["input_ids"]

    return _Tokenizer(encode, tokenizer.get_vocab(), tokenizer.pad_token_id)


def _of_file(file: str) -> _Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    padding = tokenizer.padding["pad_id"] if tokenizer.padding else None
    tokenizer.no_padding()

    def encode(texts: list[str], length: int | None) -> list[list[int]]:
        if length is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(length)
        encoded = tokenizer.encode_batch(texts, add_special_tokens=length is not None)
        return [text.ids for text in encoded]

    return _Tokenizer(encode, tokenizer.get_vocab(), padding)
