"""Stores that are files: made once, opened one after the other, and named when they cannot be used."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from mlflow.tracking import MlflowClient

from rayfl.analysis.store import open_store
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.text import redacted
from rayfl.tracking import defaults, sqlite
from rayfl.tracking.defaults import store_address
from rayfl.tracking.run import check_store
from rayfl.tracking.store import TrackingStore

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print(1, flush=True)
time.sleep(99)
"""


@pytest.fixture
def refused(small, tmp_path):
    """Asserts that a store is refused, by everything that opens one, in one line within a second."""

    def check(uri, match):
        small["tracking"] = {"enabled": True, "uri": uri}
        ways = {
            "tracking.uri = ": lambda: check_store(load_config(small)),
            "tracking.uri": lambda: TrackingStore(uri, "rayfl"),
        }
        if (file := defaults.database_file(uri)) is not None and file.exists():
            ways["--uri = "] = lambda: open_store(uri)
        for start, way in ways.items():
            began = time.monotonic()
            with pytest.raises(ConfigError, match=match) as error:
                way()
            assert str(error.value).startswith(start)
            assert "\n" not in str(error.value)
            assert time.monotonic() - began < 2

    return check


def test_a_file_that_sqlite_cannot_open_is_one_line_at_once(refused, tmp_path):
    (tmp_path / "text").write_text("no database, and longer than the header of one " * 10)
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE birds (name)")
    refused("sqlite:////proc/x.db", "cannot be opened or made .*No such file")
    refused(f"sqlite:///{tmp_path}", "cannot be opened or made")
    refused(f"sqlite:///{tmp_path}/text", "not a database")
    refused(f"sqlite:///{tmp_path}/text/x.db", "Not a directory")
    refused(f"sqlite:///{tmp_path}/other", "something else .*birds")
    assert {path.name for path in tmp_path.iterdir()} <= {
        "text",
        "other",
        "other.lock",
        "text.lock",
    }


def test_a_directory_of_files_is_named_with_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=rf"migrate-filestore --source {tmp_path}/mlruns "):
        TrackingStore(f"file://{tmp_path}/mlruns", "rayfl")


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        ("DROP TABLE jobs", "move the file away"),
        ("SELECT 1", r"mlflow db upgrade sqlite:///"),
    ],
)
def test_a_store_with_runs_that_was_left_half_migrated_stays_and_is_named(
    damage, advice, store_here, tmp_path
):
    store = TrackingStore(None, "rayfl")
    store.client.create_run(store.experiment_id)
    shutil.copy("mlflow.db", "half.db")
    with sqlite3.connect("half.db") as half:
        half.execute("UPDATE alembic_version SET version_num = 'bf29a5ff90ea'")
        half.execute(damage)
    for open_it in (lambda u: TrackingStore(u, "rayfl"), open_store):
        with pytest.raises(ConfigError, match=advice):
            open_it(f"sqlite:///{tmp_path}/half.db")
    assert (tmp_path / "half.db").exists()


@pytest.mark.slow
def test_a_store_without_runs_that_was_left_half_made_is_made_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sqlite, "_QUIET_SECONDS", 0.2)
    with sqlite3.connect("mlflow.db") as half:
        half.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        half.execute("CREATE TABLE _alembic_tmp_experiments (experiment_id INTEGER)")
    store = TrackingStore(None, "rayfl")
    assert store.client.get_experiment_by_name("rayfl").experiment_id == store.experiment_id
    assert (tmp_path / "mlflow.db.unfinished").exists()
    assert "half-made" in caplog.text


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_no_store_or_a_whole_one(tmp_path):
    make = "import rayfl.tracking.store as s; s.TrackingStore(None, 'rayfl')"
    for seconds in (3, 4.5, 6):
        process = subprocess.Popen([sys.executable, "-c", make], cwd=tmp_path)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "mlflow.db").exists():
            MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_lock_is_waited_for_with_a_message_and_goes_with_its_process(
    store_here, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(sqlite, "NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(sqlite, "PATIENCE_SECONDS", 0.1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, "mlflow.db.lock"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "1\n"
    with pytest.raises(ConfigError, match=r"another process has held .*mlflow.db.lock"):
        TrackingStore(None, "rayfl")
    assert "waiting for another process to open" in caplog.text
    holder.kill()
    holder.wait()
    TrackingStore(None, "rayfl")


def test_a_place_without_locks_is_used_without(store_here, tmp_path):
    (tmp_path / "mlflow.db.lock").mkdir()  # cannot be opened, as where flock is missing
    TrackingStore(None, "rayfl")


@pytest.mark.slow
def test_runs_that_start_together_share_one_new_store(tmp_path, small):
    import yaml

    small |= {"tracking": {"enabled": True}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    rayfl = [sys.executable, "-c", "from rayfl.cli.main import script; script()"]
    for i in range(2):
        place = tmp_path / str(i)
        place.mkdir()
        run = [*rayfl, "run", "../c.yaml", "--local", "--json"]
        both = [
            subprocess.Popen([*run, f"seed={s}"], cwd=place, stderr=subprocess.PIPE, text=True)
            for s in (1, 2)
        ]
        for process in both:
            _, err = process.communicate()
            assert process.returncode == 0, err
        shown = subprocess.run(
            [*rayfl, "results", "--format", "csv"], cwd=place, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr
        store = MlflowClient(f"sqlite:///{place}/mlflow.db")
        runs = store.search_runs([store.get_experiment_by_name("rayfl").experiment_id])
        assert [(r.info.status, r.data.metrics["rounds"]) for r in runs] == [("FINISHED", 3)] * 2


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://user:secret@host/db", "postgresql://...@host/db"),
        ("mysql+pymysql://user:se/cr@et@host:1/db", "mysql+pymysql://...@host:1/db"),
        ("x (http://user:secret@host:5000/a) y", "x (http://...@host:5000/a) y"),
        (
            "postgresql://host/db?user=u&password=secret&a=b",
            "postgresql://host/db?user=u&password=...&a=b",
        ),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_passwords_are_never_shown(address, shown):
    assert redacted(address) == shown
    assert (
        str(ConfigError("is bad", "tracking.uri", address)) == f"tracking.uri = '{shown}': is bad"
    )


def test_the_environment_names_the_store_where_nothing_else_does(
    store_here, tmp_path, monkeypatch, caplog
):
    place = tmp_path / "elsewhere"
    place.mkdir()
    shutil.copy("mlflow.db", place)
    defaults._say_once.cache_clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    assert store_address(None, "--uri") == (defaults.default_uri(), "--uri")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    store = TrackingStore(None, "there")
    assert MlflowClient(f"sqlite:///{place}/mlflow.db").get_experiment_by_name("there")
    assert open_store(None)[0].get_experiment_by_name("there").experiment_id == store.experiment_id
    said = f"MLflow store: sqlite:///{place}/mlflow.db (MLFLOW_TRACKING_URI)"
    assert [record.message for record in caplog.records] == [said]
    assert TrackingStore(f"sqlite:///{tmp_path}/mlflow.db", "here").experiment_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/x.db")
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI = 'sqlite:////proc/x.db': cannot"):
        TrackingStore(None, "rayfl")
