"""`run` from config to MLflow, in a real store; on real actors once: a run without Ray is the same."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

from rayfl import load_config, models, run
from rayfl.data.partition import split
from rayfl.errors import ClientError, ConfigError, DivergedError
from rayfl.prepare import prepare
from rayfl.training.flat import Layout
from rayfl.workload import clients_per_unit


@pytest.fixture
def tracked(small, store_here):
    """The small experiment, recorded in MLflow's default place: the working directory."""
    small["tracking"] = {"targets": [0.1, 1.0]}
    return small


@pytest.fixture
def client(tmp_path):
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


def the_run(client):
    (found,) = client.search_runs([client.get_experiment_by_name("rayfl").experiment_id])
    return found


def test_run_returns_history_and_a_state_dict_of_the_plain_model(small):
    config = load_config(small)
    result = run(config, local=True)

    assert isinstance(result.history, pd.DataFrame)
    assert result.history.index.tolist() == [1, 2, 3]
    assert {"train/loss", "test/accuracy", "server/alpha"} <= set(result.history)
    assert result.history["train/loss"].iloc[-1] < result.history["train/loss"].iloc[0]

    data = config.data.load()
    model = models.build(config.model, data.sample_shape, data.num_classes, seed=99)
    model.load_state_dict(result.state_dict)
    x = (data.x_test.astype(np.float32) / 255 - data.mean) / data.std
    x = torch.from_numpy(x.transpose(0, 3, 1, 2)).float()
    accuracy = (model(x).argmax(1).numpy() == data.y_test).mean()
    assert accuracy == pytest.approx(result.history["test/accuracy"].iloc[-1], abs=0.003)


def test_the_run_is_found_again_in_mlflow(tracked, client):
    config = load_config(tracked)
    result = run(config, local=True)
    found = client.get_run(result.run_id)

    assert found.info.run_id == result.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params["algorithm.rho"] == "0.1"
    assert found.data.params["data.name"] == "digits"
    assert found.data.params["federation.local_steps"] == "null"
    assert found.data.tags["rayfl.config_hash"] == config.hash
    assert found.data.tags["rayfl.model_sha256"] == result.model_sha256
    assert found.data.tags["rayfl.device"] == "cpu"
    accuracy = client.get_metric_history(result.run_id, "test/accuracy")
    assert [m.step for m in accuracy] == [1, 2, 3]
    assert [m.value for m in accuracy] == result.history["test/accuracy"].tolist()
    summary = found.data.metrics
    assert summary["accuracy_final"] == result.history["test/accuracy"].iloc[-1]
    assert summary["rounds_to_0.1"] == 1
    assert "rounds_to_1" not in summary
    assert summary["bytes_up"] == result.history["cost/bytes_up"].sum()

    data = config.data.load()
    partition = split(config.partition, data.y_train, 10, config.seed)
    (entry,) = found.inputs.dataset_inputs
    assert entry.dataset.digest == partition.digest()[:36]
    folder = Path(
        mlflow.artifacts.download_artifacts(
            run_id=result.run_id, tracking_uri=str(client.tracking_uri)
        )
    )
    histogram = json.loads((folder / "partition/histogram.json").read_text())
    assert np.sum(histogram["clients"]) == len(data.y_train)
    assert (folder / "partition/histogram.png").read_bytes()[:4] == b"\x89PNG"
    assert load_config(folder / "config.yaml").hash == config.hash

    clients = pd.read_csv(folder / "evaluation/clients.csv", index_col="client")
    pd.testing.assert_frame_equal(clients, result.clients)
    assert clients["samples"].tolist() == partition.sizes.tolist()
    last = result.history["client/accuracy_mean"].iloc[-1]
    assert clients["accuracy"].mean() == pytest.approx(last, rel=1e-12)
    assert summary["client/accuracy_mean"] == last


@pytest.mark.slow
def test_client_actors_give_the_same_bits_and_the_same_record(tracked, client, ray_session):
    config = load_config(tracked)
    here, there = run(config, local=True), run(config)
    assert here.model_sha256 == there.model_sha256
    one, other = (client.get_run(result.run_id).data for result in (here, there))
    assert one.params == other.params
    assert one.metrics.keys() == other.metrics.keys()
    assert one.metrics["accuracy_final"] == other.metrics["accuracy_final"]


def test_what_is_evaluated_is_the_configs_to_say_and_not_part_of_its_hash(small):
    bare = load_config(small, ["federation.rounds=1", "evaluation.per_client=false"])
    detailed = load_config(small, ["federation.rounds=1", "evaluation.per_class=true"])
    assert bare.hash == detailed.hash
    assert prepare(detailed).federation.evaluation.breakdown.per_class
    result = run(bare, local=True)
    assert result.clients is None
    assert not [name for name in result.history if name.startswith(("client/", "test/class/"))]


def test_a_query_finds_runs_by_parameter(tracked, client):
    for rho in (0.01, 0.2):
        run(load_config(tracked, [f"algorithm.rho={rho}"]), local=True)
    frame = mlflow.search_runs(
        [client.get_experiment_by_name("rayfl").experiment_id],
        "params.`algorithm.rho` = '0.2' and attributes.status = 'FINISHED'",
    )
    mlflow.set_tracking_uri(None)
    assert len(frame) == 1


def test_an_interrupted_run_is_killed_and_keeps_its_rounds(tracked, client):
    def stop(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(load_config(tracked), local=True, on_metrics=stop)
    found = the_run(client)
    assert found.info.status == "KILLED"
    kept = client.get_metric_history(found.info.run_id, "train/loss")
    assert [m.step for m in kept][:2] == [1, 2]


@pytest.mark.parametrize(
    ("name", "error", "message", "rounds"),
    [
        ("failing:RaisesInRoundTwo", ClientError, "momentum of nothing", [1]),
        ("failing:EndsOn", DivergedError, r"^round 3, .*server state 'm'\) is not finite", [1, 2]),
    ],
)
def test_a_failed_run_keeps_its_rounds(tracked, client, name, error, message, rounds):
    tracked["algorithm"] = {"name": name}
    with pytest.raises(error, match=message):
        run(load_config(tracked), local=True)
    found = the_run(client)
    assert found.info.status == "FAILED"
    kept = client.get_metric_history(found.info.run_id, "train/loss")
    assert [m.step for m in kept] == rounds


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        pytest.param(
            "http://127.0.0.1:9",
            "tracking.uri = 'http://127.0.0.1:9': MLflow cannot use it",
            marks=pytest.mark.slow,  # MLflow's retries
        ),
        ("nonsense://x", "tracking.uri = 'nonsense://x': MLflow cannot use it"),
    ],
)
def test_a_store_that_is_not_there_is_an_error_before_any_actor(uri, message, tracked, ray_session):
    tracked["tracking"] = {"uri": uri}
    started = []
    with pytest.raises(ConfigError, match=message):
        run(load_config(tracked), on_start=started.append)
    assert not started


def test_units_depend_on_the_work_and_never_on_the_actors(small):
    def units(model, cohort, batch_size=10, samples=50, stack=None):
        small["model"] = model
        built = prepare(load_config(small))
        size, dense = Layout(built.model).size, built.settings.shortcuts.dense
        return cohort / clients_per_unit(size, dense, cohort, batch_size, samples, stack)

    assert units({"name": "mlp", "hidden": [16]}, 100) == 1  # not worth a second message
    assert units({"name": "mlp", "hidden": [400, 400]}, 100) == 2
    assert units({"name": "mlp", "hidden": [400, 400]}, 100, samples=5000) == 50
    assert units({"name": "convolutions:with_batch_norm"}, 10) == 10
    assert units({"name": "convolutions:with_batch_norm"}, 640) == 64
    assert units({"name": "convolutions:with_batch_norm"}, 10, stack=5) == 2
    assert units({"name": "convolutions:with_batch_norm"}, 10, stack=50) == 1


@pytest.mark.slow
def test_lenet_on_cifar10(small, cifar10):
    small |= {
        "data": {"name": "parquet", "path": str(cifar10), "augment": "flip_crop"},
        "model": {"name": "lenet5"},
    }
    small["federation"] |= {
        "clients": 1000,
        "cohort": 4,
        "clients_per_unit": None,
        "rounds": 2,
        "eval_every": 2,
    }
    result = run(load_config(small), local=True)
    assert result.history["train/loss"].iloc[1] < 2.5
    assert result.summary["accuracy_final"] > 0.1
    assert sum(v.numel() for v in result.state_dict.values()) == 797_962


def test_a_model_that_cannot_be_stacked_is_an_error_before_any_actor(small):
    small["model"] = {"name": "convolutions:with_batch_norm"}
    small["federation"]["stack"] = 2
    message = (
        r"federation\.stack = 2: .* one at a time, because in a stack its buffers \(1\.running_mean"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(load_config(small))
