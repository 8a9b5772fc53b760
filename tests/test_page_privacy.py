"""The commands of docs/privacy.md."""

import pytest
from conftest import ROOT
from pages import blocks, commands_of, shell

PAGE = (ROOT / "docs/privacy.md").read_text()
RUN, PLAN, SWEEP, RESULTS = commands_of(PAGE)


@pytest.mark.slow
def test_a_private_run(tmp_path):
    said = shell(f"{RUN} federation.rounds=3 2>&1", tmp_path)
    assert "noise 1 at the server: epsilon " in said
    assert "at delta 0.001, for one client more or less" in said
    assert "\nepsilon         " in said


@pytest.mark.slow
def test_a_sweep_over_the_noise(tmp_path):
    (file,) = blocks(PAGE, "yaml")
    (tmp_path / "noise.yaml").write_text(file)
    assert "epsilon of a client after all rounds: 4.04 to 73.3" in shell(PLAN, tmp_path)
    shell(f"{SWEEP} 'seeds=[0]' base.federation.rounds=2", tmp_path)
    table = shell(RESULTS, tmp_path)
    assert "privacy.noise" in table
    assert "epsilon" in table
