"""Sections with a name: registered names, import paths, and what users do wrong with their own code."""

import sys
from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import Field

from rayfl.config.choice import Choice, import_path
from rayfl.config.named import ALGORITHM, DATA, MODEL, PARTITION
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError

OWN = """
from dataclasses import dataclass
from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.errors import ConfigError

@dataclass(frozen=True, kw_only=True)
class Mine(Algorithm):
    gamma: float
    layers: tuple[int, ...] = (1, 2)
    table: dict[str, int] | None = None

    def __post_init__(self):
        if self.gamma == 1:
            raise ValueError("gamma = 1 never forgets;\\ntake less")
        if self.gamma == 2:
            raise ZeroDivisionError("oh")
        if self.gamma == 3:
            raise ConfigError("algorithm.gamma = 3: is odd")

    @dataclass(frozen=True, kw_only=True)
    class Inner(Algorithm):
        rho: float = 0.5

class NoDataclass(Algorithm):
    rho: float = 0.5

@dataclass(frozen=True, kw_only=True)
class Unwritable(Algorithm):
    function: object = print

Alias = ALGORITHMS["fedsam"]

def model(num_classes, width=3): ...
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A directory with the user's own modules, on the path as the command line puts it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "raises.py").write_text("\nraise RuntimeError('boom\\nat import')")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit('usage: ...')")
    (tmp_path / "garbled.py").write_text("def (")
    return tmp_path


def refusal(choice: Choice, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        choice.parse(value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("choice", [DATA, PARTITION, MODEL, ALGORITHM], ids=lambda c: c.section)
def test_every_registered_name_comes_back(choice):
    for name, cls in choice.known.items():
        required = {"path": "x", "size": 8}
        options = {key: required[key] for key in required if key in cls.__dataclass_fields__}
        built = choice.parse({"name": name, **options})
        assert type(built) is cls
        assert choice.dump(built)["name"] == name
        assert choice.parse(choice.dump(built)) == built


def test_options_of_the_users_own_class(own):
    written = {"name": "own:Mine", "server_lr": 1.0, "gamma": 0.5, "layers": [3], "table": {"a": 1}}
    built = ALGORITHM.parse(written)
    assert (built.gamma, built.layers, built.table) == (0.5, (3,), {"a": 1})
    assert ALGORITHM.dump(built) == written
    inner = ALGORITHM.parse({"name": "own:Mine.Inner"})
    assert ALGORITHM.parse(ALGORITHM.dump(inner)) == inner
    # Another way to a registered class is the same experiment.
    assert ALGORITHM.dump(ALGORITHM.parse({"name": "own:Alias"}))["name"] == "fedsam"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "algorithm.gamma: is missing; add it: a number"),
        ({"gamma": "x"}, "algorithm.gamma = 'x': must be a number"),
        ({"gamma": 0, "layers": [1, "a"]}, "algorithm.layers.1 = 'a': must be an integer"),
        ({"gamma": 0, "table": {"a": "b"}}, "algorithm.table.a = 'b': must be an integer"),
        ({"gamma": 1}, "algorithm: gamma = 1 never forgets; take less"),
        ({"gamma": 3}, "algorithm.gamma = 3: is odd"),
        (
            {"gamma": 0, "layer": [1]},
            "algorithm.layer = [1]: unknown key (did you mean 'algorithm.layers'?); "
            "allowed in algorithm: gamma, layers, name, server_lr, table",
        ),
    ],
)
def test_bad_options_of_the_users_own_class(own, options, message):
    assert refusal(ALGORITHM, {"name": "own:Mine", **options}) == message


def test_code_of_the_user_that_raises_is_named_with_its_line(own):
    line = OWN.splitlines().index('            raise ZeroDivisionError("oh")') + 1
    assert refusal(ALGORITHM, {"name": "own:Mine", "gamma": 2}) == (
        "algorithm.name = 'own:Mine': cannot be made with the options {\"gamma\": 2} "
        f"(ZeroDivisionError: oh, at {own / 'own.py'}:{line})"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own:Nine", "own has no 'Nine' (did you mean 'Mine'?)"),
        ("own:", "own has no ''"),
        ("own:NoDataclass", "must be a dataclass; put @dataclass(frozen=True, kw_only=True) above "
         "the class"),
        ("own:model", "must name a subclass of rayfl.algorithms.base.Algorithm"),
        ("rayfl.data.sources:Digits", "must name a subclass of rayfl.algorithms.base.Algorithm"),
        ("absent:X", "cannot be imported (ModuleNotFoundError: No module named 'absent'); give "
         "'package.module:Name' of a module that is installed or in the working directory"),
        (":X", "cannot be imported (ValueError: Empty module name)"),
        ("raises:X", "cannot be imported (RuntimeError: boom at import, at {own}/raises.py:2)"),
        ("exits:X", "cannot be imported (SystemExit: usage: ..., at {own}/exits.py:2)"),
        ("garbled:X", "cannot be imported (SyntaxError: invalid syntax (garbled.py, line 1))"),
        ("own:Unwritable", "cannot be made with the options {{}} (PydanticSerializationError: "),
    ],
)  # fmt: skip
def test_import_paths_that_lead_to_no_algorithm(own, name, message):
    expected = f"algorithm.name = '{name}': {message.format(own=own)}"
    assert refusal(ALGORITHM, {"name": name}).startswith(expected)


def test_an_abstract_class_is_refused():
    message = refusal(DATA, {"name": "rayfl.data.datasets:Source"})
    assert "Can't instantiate abstract class Source" in message


def test_models_are_any_function(own):
    built = MODEL.parse({"name": "own:model", "width": 4})
    assert MODEL.dump(built) == {"name": "own:model", "width": 4}
    assert refusal(MODEL, {"name": "own:model", "depth": 4}) == (
        "model.name = 'own:model': cannot be called with num_classes and the options "
        "{\"depth\": 4} (got an unexpected keyword argument 'depth')"
    )
    assert "is not a callable object" in refusal(MODEL, {"name": "math:pi"})
    federation = {"cohort": 1, "local_steps": 1}
    config = load_config(
        {"model": {"name": "own:model", "width": 4}, "federation": federation},
        ["model.width=5"],
    )
    assert config.model.build((1,), 2) is None
    assert config.flat()["model.width"] == 5


@pytest.mark.parametrize("value", [None, "fedavg", ["fedavg"], 3])
def test_a_section_must_be_one(value):
    assert "must be a section; set algorithm.name to one of asyncsam, centralised, " in refusal(
        ALGORITHM, value
    )


def test_words_for_what_is_required():
    @dataclass(frozen=True, kw_only=True)
    class Cut:
        at: Annotated[float, Field(gt=0, lt=1, description="where to cut")]

    choice = Choice("cut", {"plain": Cut}, Cut)
    assert refusal(choice, {"name": "plain"}) == (
        "cut.at: is missing; add it: a number greater than 0 and less than 1 (where to cut)"
    )


def test_import_path_names_the_key():
    assert import_path("math:pi", "x.name") > 3
    with pytest.raises(ConfigError, match=r"^x\.name = 'math:tau2': math has no 'tau2'"):
        import_path("math:tau2", "x.name")
