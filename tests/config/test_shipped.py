"""The configs that come with rayfl have names that hold in any directory."""

import pytest
from conftest import ROOT

from rayfl.config import layers, shipped
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from tuning.config import load_sweep


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_every_config_has_a_name_and_says_what_it_is():
    files = {p for p in (ROOT / "configs").rglob("*.yaml") if "published" not in p.parts}
    assert set(shipped.names().values()) == files
    for name, file in shipped.names().items():
        assert file.read_text().startswith("# "), name
        assert shipped.about(file), name


@pytest.mark.slow
def test_a_printed_config_means_the_same_in_any_directory(tmp_path):
    for name, file in shipped.names().items():
        mine = tmp_path / "mine.yaml"
        mine.write_text(shipped.text(name))
        if "space" in layers.read(file, {}):
            given = ["name=x"]
            assert load_sweep(mine, given) == load_sweep(file, given) == load_sweep(name, given)
        else:
            assert load_config(mine) == load_config(file) == load_config(name)


def test_a_file_may_extend_a_name_and_a_sweep_start_from_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nseed: 7\n")
    assert load_config("mine.yaml") == load_config("quickstart", ["seed=7"])
    space = "space: {algorithm.rho: {grid: [0.1, 0.2]}}\n"
    (tmp_path / "sweep.yaml").write_text(f"base: quickstart\n{space}")
    assert load_sweep("sweep.yaml", ["base.data.validation=0.1"]).base == (
        load_sweep("rho_beta_alpha").base
    )
    (tmp_path / "inline.yaml").write_text(f"base: {{extends: mine.yaml, seed: 8}}\n{space}")
    inline = load_sweep("inline.yaml").base
    assert inline == load_sweep("sweep.yaml").base | {"seed": 8}
    again = load_sweep("rho_beta_alpha", ["base=cifar10_lenet5"])
    assert again.base["data"]["name"] == "cifar10"


def test_a_file_of_the_directory_comes_before_a_name(tmp_path):
    (tmp_path / "quickstart").write_text(shipped.text("quickstart").replace("seed: 0", "seed: 5"))
    assert load_config("quickstart").seed == 5
    (tmp_path / "quickstart").unlink()
    (tmp_path / "quickstart").mkdir()  # of somebody's runs
    assert load_config("quickstart").seed == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "did you mean 'quickstart'"),
        ("configs/quickstart.yaml", "did you mean 'quickstart'"),
        ("fedwmsam/table6", "/fedwmsam/table6'"),
        ("mine", "`rayfl configs` lists"),
        ("x" * 500, "cannot be read"),
    ],
)
def test_a_name_that_is_not_there(name, hint):
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert name[:100] in str(caught.value)
    assert hint in str(caught.value)
    with pytest.raises(ConfigError, match="config "):
        shipped.text(name)
