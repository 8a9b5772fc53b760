"""The commands of docs/privacy.md."""

import pytest
from conftest import ROOT
from pages import commands_of, shell

RUN, SWEEP, RESULTS = commands_of((ROOT / "docs/privacy.md").read_text())


@pytest.mark.slow
def test_a_private_run(tmp_path):
    said = shell(f"{RUN} federation.rounds=3 2>&1", tmp_path)
    assert "noise 1 at the server: epsilon " in said
    assert "at delta 0.001, for one client more or less" in said
    assert "\nepsilon         " in said


@pytest.mark.slow
def test_a_sweep_over_the_noise(tmp_path):
    shell(f"{SWEEP} base.federation.rounds=2", tmp_path)
    table = shell(RESULTS, tmp_path)
    assert "epsilon" in table
    assert "privacy.noise" in table
