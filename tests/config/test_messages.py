from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from rayfl.config.messages import allowed
from rayfl.text import nearest, shown


class Inner(BaseModel):
    x: int = 0
    y: int = 0


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "an integer"),
        (bool, "true or false"),
        (str, "text"),
        (Annotated[str, Field(min_length=1)], "text that is not empty"),
        (Annotated[int, Field(ge=1)], "an integer of at least 1"),
        (Annotated[float, Field(gt=0, le=1)], "a number greater than 0 and at most 1"),
        (Annotated[float, Field(ge=0, lt=0.5)], "a number of at least 0 and less than 0.5"),
        (float | None, "null or a number"),
        (Annotated[int, Field(gt=0)] | Literal["auto"], "'auto' or an integer greater than 0"),
        (Literal["a"], "'a'"),
        (Literal["a", "b", "c"], "'a', 'b' or 'c'"),
        (Literal[1, -1], "1 or -1"),
        (list[int], "a list, each item an integer"),
        (tuple[str, ...], "a list, each item text"),
        (list, "a list"),
        (dict[str, int], "a section"),
        (Inner, "a section with the keys x, y"),
        (list[Inner] | None, "null or a list, each item a section with the keys x, y"),
        (Any, ""),
        (Any | None, ""),
    ],
)
def test_types_in_words(kind, words):
    assert allowed(TypeAdapter(kind).json_schema()) == words


def test_values_are_shown_as_users_write_them():
    assert [shown(value) for value in (True, None, 0.1, "a", [1, "a"])] == [
        "true",
        "null",
        "0.1",
        "'a'",
        '[1, "a"]',
    ]
    assert shown("two\nlines") == r"'two\nlines'"
    assert len(shown(list(range(10_000)))) < 400


def test_nearest_only_if_near():
    assert nearest("fedwsam", {"fedwmsam": 0, "fedcm": 0}) == " (did you mean 'fedwmsam'?)"
    assert nearest("momentum", ["rho", "lr"]) == ""
