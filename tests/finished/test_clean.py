"""What no unfinished run needs goes; final models and what may go on stay."""

import pytest
import torch
from conftest import stopped
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from rayfl.cli.main import app
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.experiment import run
from rayfl.finished import evaluate, export, folders
from rayfl.tracking.defaults import default_uri

RECORDED = {"algorithm": {"name": "scaffold"}, "tracking": {}, "checkpoint": {"every": 1}}


@pytest.fixture
def config(small, store_here):
    def load(seed, *overrides):
        return load_config(small | RECORDED, [f"seed={seed}", "checkpoint.keep_last=3", *overrides])

    return load


@pytest.mark.slow
def test_finished_runs_keep_their_model_and_all_others_what_they_have(config, small, tmp_path):
    finished = run(config(1), local=True)
    stopped(config(2))
    deleted = run(config(3), local=True)
    untracked = config(4, "tracking.enabled=false")
    run(untracked, local=True)
    MlflowClient(default_uri()).delete_run(deleted.run_id)
    found = {folder.state: folder for folder in folders("checkpoints")}
    assert sorted(folder.state for folder in folders("checkpoints")) == [
        "deleted",
        "finished",
        "finished",
        "unfinished",
    ]
    assert found["unfinished"].freed == 0
    assert found["deleted"].freed == found["deleted"].size
    files = {path: path.stat() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert sum(status.st_size for status in files.values()) == sum(
        f.size for f in folders("checkpoints")
    )

    listed = CliRunner().invoke(app, ["clean"])
    assert "can go: add --delete" in listed.output
    assert all(path.exists() for path in files)
    assert CliRunner().invoke(app, ["clean", "--delete"]).exit_code == 0
    assert [folder.freed for folder in folders("checkpoints")] == [0, 0, 0]
    assert not (tmp_path / "checkpoints" / config(3).hash).exists()

    folder = tmp_path / "checkpoints" / config(1).hash / finished.run_id
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-00000003.json",
        "history-00000003.json",
        "state-00000003.safetensors",
    ]
    weights = export(finished.run_id, "m.pt").tensors
    assert all(torch.equal(weights[name], value) for name, value in finished.state_dict.items())
    found = evaluate(finished.run_id).metrics
    assert found["test/loss"] == finished.history["test/loss"][3]
    with pytest.raises(
        ConfigError, match=r"no memories .*, as `rayfl clean` leaves a finished run"
    ):
        run(config(1, "federation.rounds=4"), local=True, resume="latest")
    whole = run(config(2, "checkpoint.dir=elsewhere", "tracking.enabled=false"), local=True)
    assert run(config(2), local=True, resume="latest").model_sha256 == whole.model_sha256


def test_what_a_longer_run_goes_on_from_stays_while_that_may_begin_again(config):
    first = run(config(1), local=True)

    def stop(start):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(1, "federation.rounds=5"), on_start=stop, local=True, resume="latest")
    (folder,) = [folder for folder in folders("checkpoints") if folder.name == first.run_id]
    assert (folder.state, folder.freed) == ("gone on from", 0)


def test_without_its_store_a_run_is_unknown(config, tmp_path):
    run(config(1), local=True)
    (tmp_path / "mlflow.db").unlink()
    assert [(folder.state, folder.freed) for folder in folders("checkpoints")] == [("unknown", 0)]
    with pytest.raises(ConfigError, match="no MLflow store"):
        folders("checkpoints", "sqlite:////nowhere/mlflow.db")


def test_a_run_that_is_done_keeps_one_checkpoint_unless_told_otherwise(small, tmp_path):
    for keep_last, kept in ((None, [3]), (2, [2, 3])):
        place = {"every": 1, "dir": str(tmp_path / str(keep_last)), "keep_last": keep_last}
        run(load_config(small | {"checkpoint": place}), local=True)
        found = sorted((tmp_path / str(keep_last)).rglob("checkpoint-*.json"))
        assert [int(path.stem[-8:]) for path in found] == kept
