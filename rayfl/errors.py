"""The errors that users see. Each message names the value, what is allowed and what to do."""

from collections.abc import Callable
from typing import Any, Self

from rayfl.text import one_line, redacted, shown


class KeyedError(Exception):
    """An error about keys of a config, worded as `key = value: message; hint`.

    `allowed` stands for the message "must be ...". `value` is left out where there is none to show.
    `keys` are the other dotted keys that these name; no key is a part of another.
    """

    def __init__(
        self,
        message: str = "",
        key: str = "",
        value: Any = ...,
        allowed: str = "",
        hint: str = "",
        keys: tuple[str, ...] = (),
    ):
        # All of it goes to Exception.__init__ so that the error pickles across processes.
        super().__init__(message, key, value, allowed, hint, keys)
        self.message, self.key, self.value = message, key, value
        self.allowed, self.hint, self.keys = allowed, hint, keys

    def __str__(self) -> str:
        given = "" if self.value is ... else f" = {shown(self.value)}"
        message = self.message or f"must be {self.allowed}"
        words = f"{self.key}{given}: {message}" if self.key else message
        return redacted(f"{words}; {self.hint}" if self.hint else words)

    def rekeyed(self, name: Callable[[str], str]) -> Self:
        """Return this error with each key as `name` gives it, such as the key in a sweep's file."""
        words = [self.message, self.allowed, self.hint]
        for key in filter(lambda key: "." in key, {self.key, *self.keys}):
            words = [text.replace(key, name(key)) for text in words]
        message, allowed, hint = words
        keys = tuple(map(name, self.keys))
        return type(self)(message, name(self.key), self.value, allowed, hint, keys)


class ConfigError(KeyedError):
    """Bad input, found before any actor starts. The command line exits with code 2."""


Refuse = Callable[..., ConfigError]
"""Makes the error of one option from a message: `partial(ConfigError, key=..., value=...)`."""


class RunError(KeyedError):
    """A run that had started cannot go on. The command line exits with code 1."""


class OwnCodeError(RunError):
    """Code that may be the user's raised; carries the traceback."""

    def __init__(self, traceback: str, *args: Any):
        """`args`: those of the class's own constructor, what the error is pickled by."""
        super().__init__()
        self.args, self.traceback = args, traceback

    @property
    def last_line(self) -> str:
        """The line of the traceback that names the error."""
        return self.traceback.strip().splitlines()[-1]

    def rekeyed(self, name: Callable[[str], str]) -> Self:
        """Return the error itself: it is about the user's code, and names no key."""
        return self


class ClientError(OwnCodeError):
    """Code that ran for some clients raised; carries round, client ids, algorithm and the traceback."""

    def __init__(self, round: int, clients: tuple[int, ...], algorithm: str, traceback: str):
        super().__init__(traceback, round, clients, algorithm, traceback)
        self.round, self.clients, self.algorithm = round, clients, algorithm

    def __str__(self) -> str:
        ids = ", ".join(map(str, self.clients[:10])) + (", ..." if len(self.clients) > 10 else "")
        where = f"clients [{ids}]" if self.clients else "evaluation"
        return f"round {self.round}, {where}, algorithm '{self.algorithm}': {self.last_line}"


class CallbackError(OwnCodeError):
    """A function of `callbacks` raised; carries round, its import path and the traceback."""

    def __init__(self, round: int, path: str, traceback: str):
        super().__init__(traceback, round, path, traceback)
        self.round, self.path = round, path

    def __str__(self) -> str:
        return f"round {self.round}, callbacks {self.path}: {self.last_line}"


class DivergedError(RunError):
    """The loss or an update stopped being finite."""


class CheckpointError(RunError):
    """A checkpoint cannot be written, or is not what it should be."""


class StateLostError(RunError):
    """The server's objects are gone with a node: go on from the last checkpoint."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error; its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reason(error: BaseException) -> str:
    """Return a library's error on one line, with its type."""
    return f"{type(error).__name__}: {one_line(error)}"
