"""Trials whose MLflow runs are deleted."""

import shutil
import time

import pytest
from mlflow.tracking import MlflowClient
from sweeps import runs

from rayfl.errors import RunError
from tuning.config import load_sweep
from tuning.sweep import run


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
