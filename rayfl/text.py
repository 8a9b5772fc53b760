"""Values, names and errors as text, on one line, printable, cut where they are long; and text as paths."""

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LONGEST_VALUE = 300

# `user:password@` of an address: a password may hold any character but @, which must be escaped in it.
_USER = re.compile(r"(?<=://)(?:[^:/@\s]*:[^@\s]*@|[^/@\s]*@)(?:[^/@\s]*@)*")
_ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SECRET_OPTION = re.compile(r"(?i)([?&][^=&\s]*(?:passw|pwd|secret|token)[^=&\s]*=)[^&\s'\"]+")


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """` (did you mean 'x'?)` for the known word closest to `word`, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def shown(value: Any) -> str:
    """A value as users would write it, on one line; a long one is cut."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=repr)
    text = printable(text)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def written(value: Any) -> str:
    """A value as in an override: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def printable(text: str) -> str:
    """The text with line breaks and other control characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: str, most: int = 40) -> str:
    """A name on one line, printable; the middle of a long one is cut."""
    text = printable(text)
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[: most - 3 - half]}...{text[-half:]}"


def absolute(path: str) -> Path:
    """The path that a user wrote, from the root."""
    return Path(os.path.expanduser(path)).absolute()  # Path's raises for an unknown user


def here_or_on_the_hub(path: str) -> str | None:
    """The absolute path of what is there, else a name on the Hugging Face Hub; None: it is neither."""
    place = absolute(path)
    if os.path.exists(place):  # no error, unlike Path's
        return str(place)
    return path if _ON_THE_HUB.fullmatch(path) else None


def unset(text: str) -> str:
    """The text for matplotlib, which would set what is between two dollar signs as mathematics."""
    return text.replace("$", r"\$")


def one_line(message: object) -> str:
    """The text of an error without its line breaks."""
    return " ".join(str(message).split())


def redacted(text: str) -> str:
    """Return an address, or a text with addresses, without users and passwords."""
    return _SECRET_OPTION.sub(r"\1...", _USER.sub("...@", text))
