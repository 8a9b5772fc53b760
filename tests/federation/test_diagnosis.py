"""Flatness while a run goes on: metrics of their rounds, which change no result."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rayfl.config.schema import load_config
from rayfl.diagnostics import flatness
from rayfl.errors import ConfigError
from rayfl.experiment import run

FEW = {"rho": [0.05], "scale_free_rho": [0.5], "draws": 2, "lanczos": 10}


@pytest.fixture
def diagnosed(small, tmp_path, empty_store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return small | {
        "federation": small["federation"] | {"rounds": 5},
        "diagnostics": {"every": 2, "measures": ["gap", "alignment"], "clients": 2, **FEW},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "checkpoint": {"every": 4, "dir": str(tmp_path / "checkpoints"), "keep_last": 9},
    }


def test_it_is_measured_when_due_and_after_the_last_round(diagnosed, small):
    config = load_config(diagnosed)
    result = run(config, local=True)
    measured = result.history["flatness/gap_0.05"].dropna()
    assert measured.index.tolist() == [2, 4, 5]
    assert (measured > 0).all()
    assert result.history["flatness/alignment/gradient"].notna().sum() == 3
    without = load_config(small | {"federation": diagnosed["federation"]})
    assert config.hash == without.hash
    assert run(without, local=True).model_sha256 == result.model_sha256


@pytest.mark.slow
def test_it_is_what_the_command_measures_of_the_checkpoint(diagnosed):
    config = load_config(diagnosed)
    result = run(config, local=True)
    report = flatness(
        result.run_id,
        rounds=(4, 5),
        question=config.diagnostics.question,
        uri=config.tracking.uri,
        local=True,
    )
    for round, part in report.frame.groupby("round"):
        found = result.history.loc[round, [f"flatness/{m}" for m in part["metric"]]]
        np.testing.assert_allclose(part["value"], found.astype(float), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_same_numbers(diagnosed):
    config = load_config(diagnosed)
    whole = run(config, local=True)
    (place,) = (Path(config.checkpoint.dir) / config.hash).iterdir()
    (place / "checkpoint-00000005.json").unlink()
    again = run(config, local=True, resume=whole.run_id)
    columns = [c for c in whole.history if c.startswith("flatness/")]
    pd.testing.assert_frame_equal(again.history[columns], whole.history[columns])


@pytest.mark.slow
def test_actors_measure_the_same(diagnosed, ray_session):
    config = load_config(diagnosed, ["tracking.enabled=false", "checkpoint.every=null"])
    here = run(config, local=True)
    there = run(load_config(config.model_dump(mode="json"), ["ray.address=auto"]))
    columns = [c for c in here.history if c.startswith("flatness/")]
    pd.testing.assert_frame_equal(there.history[columns], here.history[columns], check_exact=True)


def test_a_question_without_an_answer_is_refused(diagnosed):
    diagnosed["diagnostics"]["measures"] = ["flat"]
    with pytest.raises(ConfigError, match=r"diagnostics\.measures.*'flat'.*gap"):
        load_config(diagnosed)
