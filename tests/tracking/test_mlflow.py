"""Records are in the working directory, whatever its name."""

import shlex
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from rayfl.analysis.store import open_store
from rayfl.config.schema import load_config
from rayfl.storage.storage import Storage
from rayfl.tracking.defaults import database_file, default_uri
from rayfl.tracking.store import TrackingStore

NAMES = ["plain", "a b", "50%", "c%20d", "a?b", "e#f", "it's", 'x?y%25z#w ü&="@:', "日本"]


@pytest.mark.parametrize(
    ("name", "made_here"),
    [*((name, False) for name in NAMES), pytest.param(NAMES[-2], True, marks=pytest.mark.slow)],
)
def test_records_are_in_the_working_directory_whatever_its_name(
    name, made_here, tmp_path, monkeypatch, empty_store
):
    """The database is MLflow's own work in the worst of them, and a copy elsewhere."""
    (tmp_path / name).mkdir()
    if not made_here:
        shutil.copy(empty_store, tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    store = TrackingStore(None, "é/?%#")
    run = store.client.create_run(store.experiment_id)
    store.client.log_text(run.info.run_id, "hello", "a/b.txt")

    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing beside it
    assert sorted(path.name for path in Path().iterdir()) == [
        "mlflow.db",
        "mlflow.db.lock",
        "mlruns",
    ]
    assert [path.read_text() for path in Path().rglob("b.txt")] == ["hello"]
    assert database_file(default_uri()) == Path.cwd() / "mlflow.db"
    client, _ = open_store(None)
    assert client.get_experiment_by_name("é/?%#").experiment_id == store.experiment_id
    *_, address = shlex.split(store.ui_command)
    assert MlflowClient(address).get_run(run.info.run_id).info.run_id == run.info.run_id


def test_ordinary_directories_keep_the_address_that_they_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert database_file("http://a/b") is None
    assert database_file("postgresql://u@h/db") is None


def test_a_home_that_nobody_knows_is_a_directory_of_that_name(small, tmp_path, monkeypatch):
    """As the shell has it."""
    monkeypatch.chdir(tmp_path)
    small["checkpoint"] = {"dir": "~nobody_at_all/runs"}
    place = load_config(small).checkpoint.location
    assert place == str(tmp_path / "~nobody_at_all/runs")
    Storage("~nobody_at_all/runs").make()
    assert Path(place).is_dir()
