"""The model of a run on its own test set, and on others."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import rayfl
from rayfl.cli.main import app
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.finished import evaluate

DETAILED = {"evaluation": {"per_class": True}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's config, its result and the folder of its checkpoints."""
    from conftest import small_config

    folder = tmp_path_factory.mktemp("finished")
    kept = {"checkpoint": {"dir": str(folder)}}
    config = load_config(small_config() | kept | DETAILED, ["federation.rounds=2"])
    result = rayfl.run(config, local=True)
    (run,) = (folder / config.hash).iterdir()
    return config, result, str(run)


@pytest.fixture
def other(finished, tmp_path):
    """Write the run's data with another test set: a function of what is to be done to the samples."""
    data = finished[0].data.load()

    def write(change, labels=data.y_test):
        x, path = change(data.x_test), tmp_path / "other.npz"
        train = 255 - np.resize(data.x_train, (len(data.y_train), *x.shape[1:]))
        np.savez(path, x_train=train, y_train=data.y_train, x_test=x, y_test=labels)
        return ["data.name=npz", f"data.path={path}", "data.layout=channels_last"]

    return write


def test_on_its_own_test_set_a_model_has_the_numbers_of_its_last_round(finished):
    config, result, folder = finished
    found = evaluate(folder, ["evaluation.per_class=true"])
    last = result.history.iloc[-1]
    assert {"test/accuracy", "test/loss", "test/class/3", "client/accuracy_p10"} <= set(
        found.metrics
    )
    assert found.metrics == {name: last[name] for name in found.metrics}
    pd.testing.assert_frame_equal(found.clients, result.clients)
    assert (found.data, found.samples, found.round) == ("digits", 355, 2)
    assert (found.config_hash, found.model_sha256) == (config.hash, result.model_sha256)
    assert evaluate(folder, ["evaluation.per_client=false"]).clients is None


def test_another_test_set_is_normalised_as_the_runs_own(finished, other):
    """Each sample twice, in reverse: the same accuracy, though its own mean would have been another."""
    _, result, folder = finished
    data = finished[0].data.load()
    twice = other(lambda x: np.concatenate([x, x])[::-1], np.tile(data.y_test, 2)[::-1])
    found = evaluate(folder, twice)
    assert (found.data, found.samples) == ("other", 710)
    assert found.metrics["test/accuracy"] == result.history["test/accuracy"].iloc[-1]
    pd.testing.assert_frame_equal(found.clients, result.clients)
    shifted = evaluate(folder, other(lambda x: 255 - x))
    assert shifted.metrics["test/loss"] > found.metrics["test/loss"]


def test_the_command_shows_every_number_of_the_whole_test_set(finished):
    functions = {"right": "own_parts:right", "model": "own_parts:right"}
    asked = [f"evaluation.metrics={json.dumps(functions)}", "evaluation.per_class=true"]
    ended = CliRunner().invoke(app, ["evaluate", finished[2], *asked])
    rows = dict(line.split("  ", 1) for line in ended.stdout.splitlines() if "  " in line)
    assert rows["model"].strip().startswith("round 2 of ")
    assert [*rows][2:7] == ["accuracy", "loss", "right", "test/model", "of the clients"]
    numbers = {label: value.strip() for label, value in rows.items()}
    assert numbers["accuracy"] == numbers["right"] == numbers["test/model"]
    assert [*rows][7:] == [f"class {c}" for c in range(10)]


def test_clients_of_another_partition_have_other_accuracies_of_the_same_model(finished):
    _, result, folder = finished
    found = evaluate(folder, ["partition.alpha=100"])
    assert found.metrics["test/loss"] == result.history["test/loss"].iloc[-1]
    assert found.clients["accuracy"].std() < 0.5 * result.clients["accuracy"].std()


def test_data_that_the_model_does_not_fit_are_refused(finished, other):
    folder = finished[2]
    with pytest.raises(
        ConfigError, match=r"data.name = 'other': .* samples \[1, 8, 8\], and .* has \[1, 4, 8\]"
    ):
        evaluate(folder, other(lambda x: x[:, :4]))
    few = finished[0].data.load().y_test * 0
    path = other(lambda x: x, few)[1].removeprefix("data.path=")
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"y_train": arrays["y_train"] % 3})
    with pytest.raises(ConfigError, match="trained on classes 10, and 'other' has 3"):
        evaluate(folder, ["data.name=npz", f"data.path={path}", "data.layout=channels_last"])
    with pytest.raises(ConfigError, match=r"federation\.lr"):
        evaluate(folder, ["federation.lr=0.5"])


@pytest.mark.parametrize(
    "override",
    ["algorithm.name=centralised", "algorithm.name=ditto"],
)
def test_methods_without_one_global_model_of_a_federation(override, small, tmp_path):
    config = load_config(
        small | {"checkpoint": {"dir": str(tmp_path)}}, [override, "federation.rounds=1"]
    )
    result = rayfl.run(config, local=True)
    found = evaluate(str(next((tmp_path / config.hash).iterdir())))
    assert len(found.clients) == 10
    pd.testing.assert_series_equal(found.clients["accuracy"], result.clients["accuracy"])


def test_the_weights_that_it_began_with_may_be_gone(finished, small, tmp_path):
    """The checkpoint has its own; its manifest knows the first ones by their digest alone."""
    from rayfl.finished import export

    export(finished[2], tmp_path / "first.safetensors")
    kept = {"checkpoint": {"dir": str(tmp_path / "checkpoints")}}
    init = [f"model.init={tmp_path / 'first.safetensors'}", "federation.rounds=1"]
    config = load_config(small | kept, init)
    result = rayfl.run(config, local=True)
    place = tmp_path / "checkpoints" / config.hash
    (tmp_path / "first.safetensors").unlink()
    found = evaluate(str(next(place.iterdir())))
    assert found.model_sha256 == result.model_sha256
    assert found.metrics["test/loss"] == result.history["test/loss"].iloc[-1]
