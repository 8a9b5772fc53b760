"""The commands and the program of docs/after_a_run.md, in one folder, one after the other."""

import sys

import pytest
from conftest import ROOT
from pages import blocks, commands_of, shell

PAGE = (ROOT / "docs/after_a_run.md").read_text()


@pytest.mark.slow
def test_the_page(tmp_path):
    """Runs are shortened, and without Ray."""
    said = {}
    for command in commands_of(PAGE):
        short = command.replace("rounds=20", "rounds=2").replace("rounds=40", "rounds=4")
        if command.startswith("rayfl run"):
            short += " --local" if "rounds" in short else " federation.rounds=2 --local"
        said[command] = shell(short, tmp_path)
    text = "\n".join(said.values())
    assert "class 9" in text
    assert "4 rounds" in text
    assert "can go: add --delete" in text
    (program,) = blocks(PAGE, "python")
    shell(f"{sys.executable} - <<'PY'\n{program}PY", tmp_path)
