"""Runs that are deleted in MLflow, go on elsewhere, or do not reach their end."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from rayfl.config.schema import load_config
from rayfl.errors import ConfigError, RunError
from rayfl.experiment import run
from rayfl.tracking.defaults import default_uri
from rayfl.tracking.mlflow import RunTracker
from rayfl.tracking.store import TrackingStore


@pytest.fixture
def config(small, store_here):
    small["checkpoint"] = {"every": 2}
    small["federation"] |= {"rounds": 8}
    small["tracking"] = {"enabled": True}
    return load_config(small)


def only_run():
    client = MlflowClient(default_uri())
    experiment = client.get_experiment_by_name("rayfl").experiment_id
    return client, client.search_runs([experiment], run_view_type=3)[0]


def without_tracking(config):
    tracking = config.tracking.model_copy(update={"enabled": False})
    return config.model_copy(update={"tracking": tracking})


@pytest.mark.slow
@pytest.mark.parametrize("whole_experiment", [False, True])
def test_a_run_that_is_deleted_while_it_runs_ends_after_the_next_checkpoint(
    config, whole_experiment, monkeypatch
):
    monkeypatch.setattr("rayfl.tracking.mlflow.FLUSH_SECONDS", 0.0)
    seen = []

    def delete(metrics):
        if metrics.round == 3 and 3 not in seen:
            client, found = only_run()
            if whole_experiment:
                client.delete_experiment(found.info.experiment_id)
            else:
                client.delete_run(found.info.run_id)
        seen.append(metrics.round)

    with pytest.raises(
        RunError, match=r"MLflow run .* was deleted .*runs restore.*enabled=false"
    ) as e:
        run(config, on_metrics=delete, local=True)
    assert "\n" not in str(e.value)
    assert max(seen) in (4, 6)  # the round of a checkpoint

    with pytest.raises(ConfigError, match=r"was deleted.*restore"):
        run(config, resume="latest", local=True)
    resumed = run(without_tracking(config), resume="latest", local=True)
    undisturbed = run(without_tracking(config), local=True)
    assert resumed.model_sha256 == undisturbed.model_sha256

    client, found = only_run()
    if whole_experiment:
        client.restore_experiment(found.info.experiment_id)
    else:
        client.restore_run(found.info.run_id)
    again = run(config, resume="latest", local=True)
    assert again.model_sha256 == undisturbed.model_sha256
    _, found = only_run()
    assert (found.info.status, found.data.metrics["rounds"]) == ("FINISHED", 8)


def test_a_run_that_goes_on_elsewhere_keeps_its_params(config, small):
    store = TrackingStore(None, "rayfl")
    tracker = RunTracker(store, config, "digits")
    tracker.describe_config()
    small["resources"] = {"num_actors": 2}
    small["checkpoint"]["dir"] = "elsewhere"
    again = RunTracker(store, load_config(small), "digits", tracker.run_id)
    again.describe_config()
    params = store.client.get_run(tracker.run_id).data.params
    assert (params["checkpoint.dir"], params["resources.num_actors"]) == ("checkpoints", "auto")


def test_a_run_without_its_last_round_is_not_finished(config):
    tracker = RunTracker(TrackingStore(None, "rayfl"), config, "digits")
    tracker.log(7, {"train/loss": 1.0})
    tracker.finish("FINISHED")
    client, found = only_run()
    assert found.info.status == "KILLED"
    tracker = RunTracker(TrackingStore(None, "rayfl"), config, "digits", tracker.run_id)
    tracker.log(8, {"train/loss": 1.0})
    tracker.finish("FINISHED")
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_no_password_is_recorded(config, small):
    secret = "postgresql://user:secret@host/db"
    small["tracking"] = {"enabled": True, "uri": secret}
    store = TrackingStore(None, "rayfl")
    tracker = RunTracker(store, load_config(small), "digits")
    tracker.describe_config()
    found = store.client.get_run(tracker.run_id).data
    assert found.params["tracking.uri"] == "postgresql://...@host/db"
    text = Path(store.client.download_artifacts(tracker.run_id, "config.yaml")).read_text()
    assert "...@host/db" in text
    assert "secret" not in text
    store.address = "postgresql://...@host/db"
    assert "secret" not in str([found.params, found.tags, store.ui_command])
