"""Passages of Shakespeare's plays, a client a role: text that needs no download.

Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, arXiv:1812.01097, make such a federation of
his complete works. These are 47 KB of famous scenes, some shortened, in shakespeare.txt beside this module:

= PLAY SCENE      a scene
ROLE: TEXT        a speech; lines that begin with a blank go on with it

Deviation from LEAF: windows do not overlap, and each of their positions has a target, the next character.
LEAF's, one for each character, have one target, the character after the window.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

from pydantic import Field

from rayfl.data.datasets import Dataset, Source, from_arrays
from rayfl.data.text import characters, cut
from rayfl.errors import ConfigError

_TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Shakespeare(Source):
    """Speeches of 52 roles in scenes of Shakespeare: characters, the next one to predict; a group a role."""

    length: Annotated[int, Field(ge=1, le=1000, description="characters of a window")] = 40
    min_windows: Annotated[
        int, Field(ge=2, description="windows of a role; roles with fewer are left out")
    ] = 10

    def read(self) -> Dataset:
        texts = _speeches()
        tokens, vocabulary = characters(texts.values())
        roles = dict(zip(texts, tokens, strict=True))
        train, test, left_out = cut(roles, self.length, _TEST_SHARE, self.min_windows)
        if not len(test.x):
            raise ConfigError(
                f"no role has so many windows of {self.length} characters, a fifth of them test samples; "
                "lower it, or data.length",
                key="data.min_windows",
                value=self.min_windows,
                keys=("data.length",),
            )
        return from_arrays(
            "shakespeare",
            (train.x, train.y),
            (test.x, test.y),
            classes=vocabulary,
            groups=(train.text, test.text),
            files=1,
            left_out=left_out,
        )


def _speeches() -> dict[str, str]:
    """The speeches of each role, in the order of the plays, with a line break after each."""
    texts: dict[str, str] = {}
    play = role = ""
    content = files("rayfl.data.sources").joinpath("shakespeare.txt").read_text(encoding="utf-8")
    for line in content.splitlines():
        if line.startswith("= "):
            play = line[2:].rpartition(" ")[0]
        elif line.startswith(" "):
            texts[role] += f"{line[1:]}\n"
        else:
            name, _, words = line.partition(": ")
            role = f"{name} ({play})"
            texts[role] = f"{texts.get(role, '')}{words}\n"
    return texts
