"""Every command and the program of docs/text.md are run, shortened."""

import json

import pytest
from conftest import ROOT
from pages import commands_of, run_program, shell

PAGE = (ROOT / "docs/text.md").read_text()
SHORT = " --local --json tracking.enabled=false checkpoint.every=null federation.rounds=2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory in which the page's program has made its model."""
    folder = tmp_path_factory.mktemp("text")
    run_program(PAGE, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", commands_of(PAGE))
def test_command(command, folder):
    result = json.loads(shell(f"{command}{SHORT} federation.eval_every=2", folder))
    assert result["rounds"] == 2
