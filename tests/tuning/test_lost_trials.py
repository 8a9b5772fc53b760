"""Trials whose MLflow runs are deleted, or that go on elsewhere."""

import shutil
import time

import pytest
from mlflow.tracking import MlflowClient
from sweeps import runs

from rayfl.errors import RunError
from tuning.config import load_sweep
from tuning.sweep import run


def failing_after_a_round(update):
    if update.rounds:
        raise RuntimeError("the driver fails")  # Tune then ends the actors, which others need here


@pytest.mark.slow
def test_a_trial_whose_run_is_deleted_is_named_and_runs_anew(
    sweep_file, tmp_path, empty_store, ray_session
):
    shutil.copy(empty_store, tmp_path)
    sweep = load_sweep(sweep_file(), [])
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    gone = []

    def delete(update):
        until = time.monotonic() + 30
        while not gone and time.monotonic() < until:  # another thread makes it
            gone.extend(found.info.run_id for found in runs(tmp_path)[:1])
        if len(gone) == 1:
            client.delete_run(gone[0])
            gone.append("")

    with pytest.raises(
        RunError, match=r"these were deleted meanwhile: .*the same command"
    ) as error:
        run(sweep, on_update=lambda update: update.state == "running" and delete(update))
    assert "\n" not in str(error.value)
    assert gone[0] in str(error.value)
    result = run(sweep)
    assert [row.state for row in result.rows] == ["finished"] * 2
    assert gone[0] not in {row.run_id for row in result.rows}


@pytest.mark.slow
def test_a_sweep_goes_on_with_other_actors_and_checkpoints(sweep_file, ray_session):
    path = sweep_file()
    many = ["base.federation.rounds=40", "scheduler={name: median, every: 1, grace_period: 1000}"]
    with pytest.raises(RuntimeError, match="the driver fails"):
        run(load_sweep(path, many), on_update=failing_after_a_round)
    elsewhere = ["base.resources.num_actors=1", "base.checkpoint.keep_last=3"]
    result = run(load_sweep(path, [*many, *elsewhere]))
    assert [row.state for row in result.rows] == ["finished"] * 2
