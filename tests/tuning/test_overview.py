"""The page of a sweep's MLflow run: names of its trials, settings, best row, table and pictures."""

import json
from pathlib import Path

import pytest
from sweeps import runs

from rayfl.analysis import curves
from rayfl.inputs import Inputs
from rayfl.tracking.store import TrackingStore
from tuning import plan as planning
from tuning.config import load_sweep
from tuning.overview import record_results
from tuning.sweep import TrialResult
from tuning.tracking import SweepTracker

OPTUNA = ["search.name=optuna", "search.num_samples=4"]
DRAWN = {"algorithm.rho": {"loguniform": [0.01, 0.1]}}


@pytest.fixture
def sweep_of(sweep_file, store_here):
    """Record a sweep whose trials are said to have run: the store, the tracker and the rows."""

    def record(*overrides):
        sweep = load_sweep(sweep_file(seeds=[0, 1]), overrides)
        store = TrackingStore(None, "rayfl")
        tracker, inputs = SweepTracker(store, sweep), Inputs()
        found = planning.trials(sweep, sweep.search.points(sweep.space))
        trials = [planning.checked(sweep, trial, inputs) for trial in found]
        for trial in trials:
            tracker.start(trial, *inputs.of(trial.config))
            final = trial.point["algorithm.rho"] + trial.seed / 100
            other = {"test/loss": 1.0, "train/loss": 1.0, "time/round_s": 0.1}
            records = [(r, {"test/accuracy": final * r / 3, **other}) for r in (1, 2, 3)]
            tracker.record(trial.hash, {"records": records})
            tracker.end(trial.hash, "finished", "", "", {})
        tracker.finish("FINISHED")
        left = tracker.results()
        rows = [TrialResult(**vars(left[t.identity]), trial=t, log=None) for t in trials]
        record_results(store, tracker.parent_id, sweep, rows)
        return store, tracker.parent_id

    return record


def test_the_page_of_a_sweep_has_its_settings_and_results(sweep_of, tmp_path):
    store, parent = sweep_of("space.federation.local_epochs.grid=[1, 2]")
    run = store.client.get_run(parent)
    assert run.data.params["metric"] == "test/accuracy"
    assert json.loads(run.data.params["search"]) == {"name": "grid"}
    assert run.data.params["seeds"] == "[0, 1]"
    assert json.loads(run.data.params["space.algorithm.rho"]) == {"grid": [0.05, 0.1]}
    assert run.data.metrics == {"best/test/accuracy": pytest.approx(0.105), "best/n": 2}
    assert run.data.tags["best.algorithm.rho"] == "0.1"
    assert "**0.1050 ± 0.0071**" in run.data.tags["mlflow.note.content"]
    files = {file.path for file in store.client.list_artifacts(parent)}
    assert files == {"sweep.yaml", "results.md", "results.csv", "curves.png", "heatmap.png"}
    names = [run.info.run_name for run in runs(tmp_path)]
    assert len(set(names)) == 8
    assert "rho=0.05 local_epochs=2 seed=1" in names


@pytest.mark.slow
def test_a_setting_that_changed_is_a_tag(sweep_of):
    sweep_of()
    store, parent = sweep_of("seeds=[0,1,2]")
    run = store.client.get_run(parent)
    assert (run.data.params["seeds"], run.data.tags["now.seeds"]) == ("[0, 1]", "[0, 1, 2]")


@pytest.mark.slow
def test_pictures_that_fail_are_a_warning(sweep_of, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(curves, "curves", fail)
    store, parent = sweep_of()
    files = {file.path for file in store.client.list_artifacts(parent)}
    assert files == {"sweep.yaml", "results.md", "results.csv"}  # a heatmap needs two axes
    assert "curves.png of the sweep's results: not in its MLflow run (OSError: no" in caplog.text


def test_points_with_many_digits_have_short_names_of_their_own(sweep_file):
    sweep = load_sweep(sweep_file(space=DRAWN), OPTUNA)
    points = [{"algorithm.rho": rho} for rho in (0.02, 0.012345671, 0.012345672)]
    names = [planning.resolve(sweep, point, 0).name for point in points]
    assert names[0] == "rho=0.02 seed=0"
    assert len(set(names)) == 3
    assert all(name.startswith("rho=0.01235 seed=0 ") and len(name) < 40 for name in names[1:])


def test_mlflow_opens_on_training_runs(store_here):
    store = TrackingStore(None, "rayfl")
    tags = store.client.get_experiment(store.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert store.page("abc") == (
        f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs/abc"
        "?workflowType=machine_learning"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),
    ],
)
def test_an_experiment_of_before_is_one_of_training(store_here, before, after):
    store = TrackingStore(None, "other")
    client, made = store.client, store.client.create_experiment("mine", str(Path.cwd() / "a"))
    if before:
        client.set_experiment_tag(made, "mlflow.experimentKind", before)
    TrackingStore(None, "mine")
    assert client.get_experiment(made).tags["mlflow.experimentKind"] == after
