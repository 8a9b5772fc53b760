"""Every command and the program of docs/data.md are run, shortened."""

import json

import pytest
from conftest import ROOT
from pages import commands_of, run_program, shell

PAGE = (ROOT / "docs/data.md").read_text()
SHORT = " --local --json tracking.enabled=false checkpoint.every=null"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory in which the page's program has made its data."""
    folder = tmp_path_factory.mktemp("data")
    run_program(PAGE, folder)
    return folder


@pytest.mark.slow
def test_commands(folder):
    results = {}
    for command in commands_of(PAGE):
        rounds = "" if command == "rayfl run diabetes" else " federation.rounds=30"
        results[command] = json.loads(shell(f"{command}{SHORT}{rounds}", folder))
    assert len(results) == 3
    assert results["rayfl run diabetes"]["r2"] > 0.4
    assert results["rayfl run writers"]["accuracy"]["final"] > 0.4
    assert results["rayfl run writers algorithm.name=fednsam"]["accuracy"]["final"] > 0.6
