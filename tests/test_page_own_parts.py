"""Every command of docs/own_parts.md is run, shortened, with the examples that it names."""

import ast
import json
import math
import shlex
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from pages import blocks, commands_of
from typer.testing import CliRunner

from rayfl.cli.main import app
from rayfl.data.partition import split

PAGE = (ROOT / "docs/own_parts.md").read_text()
EXAMPLES = ROOT / "docs/examples"
SHORT = (
    *("--local", "--json", "tracking.enabled=false", "checkpoint.every=null"),
    *("federation.rounds=4", "federation.local_epochs=1"),
)


@pytest.fixture
def examples(monkeypatch):
    """The folder of the examples on the path, as the command puts its working directory there."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.parametrize("command", commands_of(PAGE))
def test_command(command, examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, *given = shlex.split(command)
    done = CliRunner().invoke(app, [*given, *SHORT])
    assert done.exit_code == 0, done.exception
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rounds"] == 4
    assert math.isfinite(result["loss"])
    if "evaluation.metrics" in command:
        assert {name: 0 < value < 1 for name, value in result["own"].items()} == {
            "test/f1": True,
            "test/ece": True,
        }


def test_each_example_is_on_the_page_and_shows_its_command():
    for file in EXAMPLES.glob("*.py"):
        assert f"`docs/examples/{file.name}`" in PAGE
        (command,) = (command for command in commands_of(PAGE) if f"{file.stem}:" in command)
        assert command in " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())


def test_the_callback_of_the_page_is_one(tmp_path, monkeypatch):
    (program,) = blocks(PAGE, "python")
    (tmp_path / "of_the_page.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    _, *given = shlex.split("rayfl run quickstart callbacks=[of_the_page:on_round]")
    done = CliRunner().invoke(app, [*given, *SHORT])
    assert done.exit_code == 0, done.exception


def test_metrics_are_those_of_a_hand(examples):
    import calibration

    outputs = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 9, 0]])
    targets = torch.tensor([0, 1, 1, 1])
    # F1 of class 0: 2 / (2 + 1); of class 1: 4 / (4 + 1); class 2 is nowhere.
    assert calibration.macro_f1(outputs, targets).item() == pytest.approx((2 / 3 + 4 / 5) / 2)
    confidence = np.exp(9) / (np.exp(9) + 2)
    assert calibration.ece(outputs, targets).item() == pytest.approx(confidence - 3 / 4)


def test_weights_are_saved_and_signs_counted(examples, tmp_path, monkeypatch):
    import rayfl

    monkeypatch.chdir(tmp_path)
    sys.modules.pop("watch", None)
    short = [text for text in SHORT if "=" in text] + ["federation.rounds=10"]
    config = rayfl.load_config(
        "quickstart", [*short, "callbacks=[watch:save_weights, watch:sign_changes]"]
    )
    result = rayfl.run(config, local=True)
    saved = torch.load("weights-10.pt")
    assert all(torch.equal(saved[name], value) for name, value in result.state_dict.items())
    changes = result.history["own/sign_changes"]
    assert np.isnan(changes[1])
    assert ((changes[2:] > 0) & (changes[2:] < 1)).all()


def test_similarity_deals_all_and_sorts_the_rest(examples):
    from similarity import Similarity

    labels = np.repeat(np.arange(10), 20)
    sorted_by_class = split(Similarity(share=0.0), labels, 10, seed=0)
    assert all(len(set(labels[sorted_by_class.client(i)])) == 1 for i in range(10))
    alike = split(Similarity(share=1.0), labels, 10, seed=0)
    assert alike.sizes.tolist() == [20] * 10
    assert min(len(set(labels[alike.client(i)])) for i in range(10)) > 5
