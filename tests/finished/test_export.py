"""The model of a run in a file, opened without rayfl."""

import json
from pathlib import Path

import mlflow
import pytest
import safetensors
import safetensors.torch
import torch

import rayfl
from rayfl import models
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.finished import export
from rayfl.models.lora import LoRA
from rayfl.models.transformer import ViTTiny
from rayfl.tracking.defaults import default_uri
from rayfl.training.flat import Layout
from rayfl.weights import Weights


@pytest.fixture
def finished(small, store_here):
    """A run in the working directory, and its config."""
    recorded = {"tracking": {}, "checkpoint": {}, "evaluation": {"average": {"last": 2}}}
    config = load_config(small | recorded, ["federation.rounds=2"])
    return config, rayfl.run(config, local=True)


def equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[k], others[k]) for k in some)


def test_the_files_hold_the_plain_models_state_dict(finished):
    config, result = finished
    written = export("latest", "model.safetensors")
    export(result.run_id, "model.pt")
    export(f"checkpoints/{config.hash}/{result.run_id}/checkpoint-00000002.json", "path.pt")
    opened = safetensors.torch.load_file("model.safetensors")
    assert equal(opened, result.state_dict)
    assert equal(opened, torch.load("model.pt", weights_only=True))
    assert equal(opened, torch.load("path.pt", weights_only=True))
    plain = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
    )
    plain.load_state_dict(opened)
    with safetensors.safe_open("model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["rayfl"])
    assert about == written.about
    assert about["config_hash"] == config.hash
    assert about["model"]["hidden"] == [16]
    assert about["round"] == 2
    uri = f"runs:/{result.run_id}/model/model.safetensors"
    logged = mlflow.artifacts.download_artifacts(uri, tracking_uri=default_uri())
    assert Path(logged).read_bytes() == Path("model.safetensors").read_bytes()

    averaged = export("latest", "average.pt", average=True)
    assert equal(torch.load("average.pt", weights_only=True), result.average_state_dict)
    assert averaged.about["average"]["last"] == 2
    assert not equal(result.average_state_dict, result.state_dict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "m.bin"}, "--output = 'm.bin': must be a file .safetensors or .pt"),
        ({"average": True}, "evaluation.average: is null, so the run has kept no average"),
    ],
)
def test_what_cannot_be_exported(arguments, message, small, tmp_path):
    directory = {"dir": str(tmp_path), "every": 1}
    config = load_config(small | {"checkpoint": directory}, ["federation.rounds=1"])
    rayfl.run(config, local=True)
    (folder,) = (tmp_path / config.hash).iterdir()
    with pytest.raises(ConfigError, match=message):
        export(str(folder), **{"output": str(tmp_path / "m.pt"), **arguments})
    assert not (tmp_path / "m.pt").exists()


def test_adapters_are_merged(small):
    adapted = ViTTiny(image_size=8, lora=LoRA(r=2))
    model = models.build(adapted, (3, 8, 8), 10, seed=0)
    w, buffers = Layout(model).flatten(model)
    w += 0.1
    found = Weights.of(load_config(small), model, (w.numpy(), buffers.numpy()), 1).tensors
    plain = models.build(ViTTiny(image_size=8), (3, 8, 8), 10, seed=1).eval()
    plain.load_state_dict(found)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plain(x), model.eval()(x), atol=1e-4)


def test_a_run_need_not_leave_its_model_in_mlflow(small, store_here):
    recorded = small | {"tracking": {"log_model": False}}
    result = rayfl.run(load_config(recorded, ["federation.rounds=1"]), local=True)
    client = mlflow.MlflowClient(default_uri())
    assert "model" not in [file.path for file in client.list_artifacts(result.run_id)]
