"""The commands of docs/personalisation.md."""

import pytest
from conftest import ROOT
from pages import commands_of, shell

RUN, SWEEP, RESULTS = commands_of((ROOT / "docs/personalisation.md").read_text())


@pytest.mark.slow
def test_a_run_says_how_accurate_the_clients_own_models_are(tmp_path):
    assert "\nown models " in shell(f"{RUN} federation.rounds=2", tmp_path)


@pytest.mark.slow
def test_a_sweep_of_the_ends_without_a_federation(tmp_path):
    few = "'space.algorithm.name.grid=[centralised,local,fedrep]' base.federation.rounds=2"
    shell(f"{SWEEP} 'seeds=[0]' {few}", tmp_path)
    table = shell(RESULTS, tmp_path)
    assert "personal/accuracy_mean" in table
    for name in ("centralised", "local", "fedrep"):
        assert name in table
