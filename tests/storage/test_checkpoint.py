"""Going on from a checkpoint equals never having stopped, and a bad checkpoint is refused."""

import contextlib
import copy
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_config
from convolutions import ENGINES, METHODS_AND_ENGINES
from local_pool import a_server
from mlflow.tracking import MlflowClient
from pyarrow import fs

from rayfl import load_config
from rayfl import run as run_on_actors
from rayfl.errors import CheckpointError, ConfigError
from rayfl.federation.history import History
from rayfl.prepare import prepare
from rayfl.provenance import Provenance
from rayfl.storage.checkpoint import find, saved_in
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.storage.snapshot import Memory, Snapshot
from rayfl.storage.storage import Storage, below

run = partial(run_on_actors, local=True)


def checkpoints(location, keep_last=2, every=1):
    made_with = Provenance("data", {})
    return CheckpointWriter(
        str(location), "hash", {"seed": 0}, made_with, "a-run", every, keep_last
    )


def untimed(records):
    return [
        (r.round, {k: v for k, v in r.values.items() if not k.startswith("time/")}) for r in records
    ]


ALWAYS = [(name, "BatchedMLP") for name in ("fedwmsam", "fednsam", "scaffold")]


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.slow)
        for case in METHODS_AND_ENGINES
    ],
)
def test_going_on_equals_never_having_stopped(name, engine, small, tmp_path):
    small["algorithm"] = {"name": name}
    small["federation"]["rounds"] = 4
    prepared = prepare(load_config(small, ENGINES[engine]))
    whole = a_server(prepared)
    expected = list(whole.run())

    first, writer, history = a_server(prepared), checkpoints(tmp_path), History()
    writer.prepare()
    records = list(first.run(until=1))
    writer.save(first.snapshot(), history.rows)
    records += first.run(until=2)  # only what this cohort changed is written now
    writer.save(first.snapshot(), history.rows)
    second = a_server(prepared)
    second.restore(checkpoints(tmp_path).latest().snapshot())
    records += second.run()

    assert torch.equal(second.w, whole.w)
    assert torch.equal(second.buffers, whole.buffers)
    assert all(torch.equal(second.state[key], whole.state[key]) for key in whole.state)
    assert second.memories.keys() == whole.memories.keys()
    for client, kept in whole.memories.items():
        for key, value in kept.handle.items():
            assert np.array_equal(second.memories[client].handle[key], value)
    assert untimed(records) == untimed(expected)


def test_what_is_taken_over_is_not_mixed_with_a_run_s_own_memories(tmp_path):
    """Client 7 has one memory of round 2 in each run, under the same name."""

    def saved_by(name, round, value):
        writer = checkpoints(tmp_path / name)
        writer.prepare()
        writer.latest()
        memory = Memory(2, lambda: {"c_i": np.full(3, value)})
        writer.save(Snapshot(round, {"w": np.full(4, value)}, {7: memory}), {round: {}})
        return writer

    own, other = saved_by("own", 2, 0.0), saved_by("other", 2, 1.0).latest()
    own.follow(own.latest())
    assert own.round == 2
    own.follow(other)
    assert saved_in(Storage(own.location)) == []
    memory = saved_by("own", 3, 1.0).latest().snapshot().memories[7]
    assert np.array_equal(memory.fetch()["c_i"], np.ones(3))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, empty_store):
    """Folder and config of a run that was interrupted after some checkpoints."""
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copy(empty_store, folder)
    config = small_config() | {"tracking": {"enabled": True}, "checkpoint": {"every": 2}}
    config["federation"]["rounds"] = 10

    def stop(record):
        if record.round == 6:
            raise KeyboardInterrupt

    with contextlib.chdir(folder), pytest.raises(KeyboardInterrupt):
        run(load_config(config), on_metrics=stop)
    return folder, config


@pytest.fixture
def stopped(interrupted, tmp_path, monkeypatch):
    """The config of the interrupted run, in a copy of its folder."""
    folder, config = interrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return copy.deepcopy(config)


@pytest.mark.slow
def test_a_run_goes_on_in_its_mlflow_run_on_another_number_of_actors(
    stopped, tmp_path, ray_session
):
    undisturbed = run(load_config(stopped | {"tracking": {"enabled": False}}))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rayfl").experiment_id
    (before,) = client.search_runs([experiment])
    started = []
    result = run_on_actors(
        load_config(stopped, ["resources.num_actors=1"]), started.append, resume=before.info.run_id
    )

    assert 2 <= started[0].resumed_round < 10
    assert result.model_sha256 == undisturbed.model_sha256
    assert result.run_id == before.info.run_id
    (after,) = client.search_runs([experiment])
    assert after.info.status == "FINISHED"
    accuracy = client.get_metric_history(result.run_id, "test/accuracy")
    assert [m.step for m in accuracy] == list(range(1, 11))
    assert [m.value for m in accuracy] == undisturbed.history["test/accuracy"].tolist()
    assert after.data.metrics["bytes_up"] == undisturbed.summary["bytes_up"]

    again = run(load_config(stopped), resume="latest")  # of a run that is finished
    assert again.model_sha256 == undisturbed.model_sha256
    assert again.summary["accuracy_best"] == undisturbed.summary["accuracy_best"]


def newest(tmp_path) -> Path:
    return sorted(tmp_path.glob("checkpoints/*/*/checkpoint-*.json"))[-1]


def test_an_older_checkpoint_is_gone_on_from_where_the_newest_is_damaged(stopped, tmp_path):
    older, damaged = sorted(tmp_path.glob("checkpoints/*/*/checkpoint-*.json"))
    state = damaged.parent / json.loads(damaged.read_text())["state"]
    state.write_bytes(b"")
    round, started = json.loads(older.read_text())["round"], []
    result = run(load_config(stopped), started.append, resume=str(older))
    assert started[0].resumed_round == round
    undisturbed = run(load_config(stopped | {"tracking": {"enabled": False}}))
    assert result.model_sha256 == undisturbed.model_sha256


def test_another_config_is_refused_and_the_difference_named(stopped, tmp_path):
    other = load_config(stopped, ["algorithm.rho=0.3", "seed=7"])
    message = r"algorithm\.rho = 0\.1 there, 0\.3 here; seed = 1 there, 7 here"
    with pytest.raises(ConfigError, match=message):
        run(other, resume=str(newest(tmp_path)))
    with pytest.raises(ConfigError, match=f"no checkpoint of this config .hash {other.hash}"):
        run(other, resume="latest")


@pytest.mark.parametrize("what", ["state", "history", "memories"])
def test_a_damaged_file_is_refused_before_any_actor(what, stopped, tmp_path):
    manifest = json.loads(newest(tmp_path).read_text())
    name = manifest[what] if what != "memories" else next(iter(manifest["memories"].values()))
    path = newest(tmp_path).parent / name
    path.write_bytes(path.read_bytes()[:-3])
    started = []
    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        run(load_config(stopped), started.append, resume="latest")
    path.unlink()
    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        run(load_config(stopped), started.append, resume="latest")
    assert not started


def test_one_wrong_bit_is_refused(stopped, tmp_path):
    state = newest(tmp_path).parent / json.loads(newest(tmp_path).read_text())["state"]
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(ConfigError, match="SHA-256"):
        run(load_config(stopped), resume="latest")


def test_another_version_is_refused(stopped, tmp_path):
    manifest = json.loads(newest(tmp_path).read_text())
    newest(tmp_path).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ConfigError, match=r"has format 99, .* reads format \d"):
        run(load_config(stopped), resume="latest")
    older, _ = sorted(newest(tmp_path).parent.glob("checkpoint-*.json"))
    newest(tmp_path).write_text("[]")
    with pytest.raises(
        ConfigError, match=f"is no checkpoint of rayfl.* there is also {older.name}"
    ):
        run(load_config(stopped), resume="latest")
    assert run(load_config(stopped), resume=str(older)).summary["rounds"] == 10


def test_one_that_cannot_be_read_stands_in_nobodys_way_but_its_own(tmp_path):
    writer = checkpoints(tmp_path / "hash/run", keep_last=3)
    writer.prepare()
    for round in (1, 2, 3):
        writer.save(a_snapshot(round, {0: round}), {})
    first, second, third = sorted((tmp_path / "hash/run").glob("checkpoint-*.json"))
    first.write_text("{")
    assert [saved.round for saved in saved_in(Storage(str(first.parent)))] == [2, 3]
    assert find(str(tmp_path), "hash", "latest").round == 3
    third.write_text("[]")
    assert find(str(tmp_path), "hash", str(second)).round == 2
    for which in ("latest", str(third), str(third.parent), "run"):
        with pytest.raises(CheckpointError, match=r"3\.json is no checkpoint.* also .*2\.json"):
            find(str(tmp_path), "hash", which)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"round": None}, "round: Input should be a valid integer"),
        ({"state": "../../elsewhere"}, "state: String should match pattern"),
        ({"files": {}}, "files lacks history-"),
        ({"memories": {"x": "memories/1-1.safetensors"}}, "memories.x"),
    ],
)
def test_a_manifest_that_says_what_none_would_is_refused(change, why, stopped, tmp_path):
    manifest = json.loads(newest(tmp_path).read_text())
    newest(tmp_path).write_text(json.dumps(manifest | change))
    with pytest.raises(ConfigError, match=f"is no checkpoint of rayfl .*{why}"):
        run(load_config(stopped), resume="latest")


def test_a_manifest_cannot_have_files_elsewhere_deleted(tmp_path):
    (tmp_path / "precious").write_text("")
    writer = checkpoints(tmp_path / "run", keep_last=1)
    writer.prepare()
    writer.save(a_snapshot(1, {}), {})
    path = tmp_path / "run/checkpoint-00000001.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../precious"] = {"bytes": 0, "sha256": ""}
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is no checkpoint of rayfl"):
        checkpoints(tmp_path / "run", keep_last=1).latest()


def test_a_run_that_mlflow_does_not_know_is_refused(stopped, tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "other.db")
    stopped["tracking"]["uri"] = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(ConfigError, match="to which the checkpoint belongs, is not in"):
        run(load_config(stopped), resume="latest")
    stopped["tracking"] = {"enabled": False}
    assert run(load_config(stopped), resume="latest").run_id is None


@pytest.mark.parametrize("which", ["latest", "", "nothing", "nowhere/checkpoint-00000001.json"])
def test_what_is_not_there_is_said(which, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint"):
        run(load_config(small), resume=which)


def test_a_place_that_cannot_be_written_is_an_error_before_any_actor(small, tmp_path):
    (tmp_path / "file").write_text("")
    started = []
    refused = {
        tmp_path / "file/x": "cannot be made",
        "x://y": "kind of storage",
        "http://127.0.0.1:9/x": "or written to",
    }
    for place, message in refused.items():
        small["checkpoint"] = {"dir": str(place)}
        with pytest.raises(ConfigError, match=f"checkpoint.dir.*{message}"):
            run(load_config(small), started.append)
    assert not started


def a_snapshot(round, last_rounds):
    tensors = {"w": np.full(3, round, np.float32), "buffers": np.zeros(0, np.float32)}
    memories = {
        client: Memory(last, lambda value=last: {"c_i": np.full(2, value, np.float32)})
        for client, last in last_rounds.items()
    }
    return Snapshot(round, tensors, memories)


@pytest.mark.parametrize("place", ["directory", "memory://checkpoints", "file"])
def test_a_memory_is_written_once_and_deleted_when_nothing_holds_it(place, tmp_path):
    location = {"directory": str(tmp_path), "file": tmp_path.as_uri()}.get(place, place)
    writer = checkpoints(f"{location}/run")
    writer.prepare()
    folder = Storage(f"{location}/run")
    for round in range(1, 5):  # client 0 is in every cohort, client 1 only in the first
        writer.save(a_snapshot(round, {0: round, 1: 1}), {})
    assert sorted(folder.sizes("memories")) == [
        "memories/0-00000003.safetensors",
        "memories/0-00000004.safetensors",
        "memories/1-00000001.safetensors",
    ]
    assert len(folder.sizes()) == 2 * 3  # two checkpoints of three files
    third, fourth = saved_in(folder)
    assert third.snapshot().memories[0].fetch()["c_i"].tolist() == [3, 3]
    assert fourth.snapshot().memories[1].fetch()["c_i"].tolist() == [1, 1]
    assert find(str(location), "hash", f"{location}/run").round == 4


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("gs://lab/runs", "gs://lab/runs?retry_limit_seconds=60"),
        ("gs://lab/runs?scheme=https", "gs://lab/runs?scheme=https&retry_limit_seconds=60"),
        ("gs://lab/runs?retry_limit_seconds=7", "gs://lab/runs?retry_limit_seconds=7"),
    ],
)
def test_google_storage_is_given_up_within_a_minute(given, meant, monkeypatch):
    """Unless the URI says otherwise: the client's own limit is 15 minutes."""
    opened = []

    def from_uri(uri):
        opened.append(uri)
        return fs.LocalFileSystem(), "lab/runs"

    monkeypatch.setattr("pyarrow.fs.FileSystem", SimpleNamespace(from_uri=from_uri))
    Storage(given)
    assert opened == [meant]


def test_a_write_that_was_cut_off_leaves_the_checkpoint_before_it(tmp_path):
    writer = checkpoints(tmp_path)
    writer.prepare()
    writer.save(a_snapshot(1, {0: 1}), {1: {"train/loss": 1.0}})
    write, left = Storage.write, 2

    def full(self, name, content):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("no space left on device")
        write(self, name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "write", full)
        with pytest.raises(CheckpointError, match=r"round 2 cannot be written .*no space left"):
            writer.save(a_snapshot(2, {0: 2}), {})
    found = checkpoints(tmp_path).latest()
    found.check()
    assert (found.round, found.history()) == (1, {1: {"train/loss": 1.0}})
    assert found.snapshot().memories[0].fetch()["c_i"].tolist() == [1, 1]


def test_options_of_a_uri_stay_at_its_end():
    assert (
        below("s3://b/runs?region=r&scheme=http", "h", "x")
        == "s3://b/runs/h/x?region=r&scheme=http"
    )
    assert below("/a/what?", "h") == "/a/what?/h"
