"""The flatness of a sweep: a row a point, differences paired over seeds, pictures on shared scales."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
from mlflow.artifacts import download_artifacts
from mlflow.tracking import MlflowClient

from rayfl.analysis import report as page
from rayfl.analysis.runs import load
from rayfl.diagnostics import Question, flatness, flatness_of_sweep, sweep_named
from rayfl.diagnostics.comparison import pictures_of_sweep
from rayfl.diagnostics.sweep_tables import (
    chosen_columns,
    default_columns,
    differences,
    frame_of,
    parts,
    table_of,
)
from rayfl.errors import ConfigError
from rayfl.flatness.measures import Effort
from tuning.config import load_sweep
from tuning.sweep import run

pytestmark = pytest.mark.slow  # two sweeps, and the flatness of their trials

EFFORT = Effort(rhos=(0.05,), scale_free_rhos=(0.5,), draws=2, lanczos_steps=10, grid=5)
QUESTION = Question(measures=("gap", "hessian", "landscape"), splits=("train",), effort=EFFORT)


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory, empty_store, ray_session):
    """URI of a store with `kept`, a sweep of two methods and two seeds, and `lost`: without checkpoints."""
    from conftest import small_config

    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{folder}/mlflow.db"
    base = small_config() | {
        "tracking": {"uri": uri},
        "checkpoint": {"every": "auto", "dir": str(folder / "checkpoints")},
        "algorithm": {"name": "fedavg"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where MLflow puts artifacts
        for name, rounds in (("kept", 3), ("lost", 2)):
            base["tracking"]["log_model"] = None if name == "kept" else True
            content = {
                "name": name,
                "base": base | {"federation": base["federation"] | {"rounds": rounds}},
                "space": {"algorithm.name": {"grid": ["fedavg", "fedsam"]}},
                "seeds": [0, 1] if name == "kept" else [0],
                "keep_checkpoints": name == "kept",
            }
            file = folder / f"{name}.yaml"
            file.write_text(pd.Series(content).to_json())  # JSON is YAML
            assert run(load_sweep(file)).succeeded
        yield uri


@pytest.fixture(scope="module")
def report(sweeps):
    return flatness_of_sweep("kept", question=QUESTION, uri=sweeps, local=True)


def test_mlflow_has_the_models_of_trials_that_are_kept_or_whose_file_says_so(sweeps):
    """They pass through storage, where nothing of them stays."""
    found = load(uri=sweeps)
    assert len(found) == 6
    for run_id in found["run_id"]:
        path = f"runs:/{run_id}/model/model.safetensors"
        logged = Path(download_artifacts(path, tracking_uri=sweeps))
        with safetensors.safe_open(logged, "pt") as file:
            about = json.loads(file.metadata()["rayfl"])
        tags = MlflowClient(sweeps).get_run(run_id).data.tags
        assert about["config_hash"] == tags["rayfl.config_hash"]
    folder = Path(sweeps.removeprefix("sqlite:///")).parent
    assert not list((folder / "checkpoints").rglob("model.safetensors"))


def test_every_trial_is_measured_as_a_run_is(sweeps, report):
    assert report.seconds > 0
    assert len(report.runs) == 4
    assert report.by == ("algorithm.name",)
    for row in report.runs.to_dict("records"):
        alone = flatness(row["run_id"], question=QUESTION, uri=sweeps, local=True)
        assert alone.seconds == 0  # what the sweep's command measured is the trial's own
        for metric, value in alone.frame[["metric", "value"]].itertuples(index=False):
            assert row[f"flatness/{metric}"] == value
    recorded = load(uri=sweeps, where="sweep='kept'").set_index("run_id")["test/accuracy"]
    found = report.runs.set_index("run_id")["test/accuracy"]
    pd.testing.assert_series_equal(found.sort_index(), recorded.sort_index().astype(float))


def test_a_row_is_the_mean_over_seeds_of_a_point(report):
    rows = frame_of(report).set_index("algorithm.name")
    for name, members in report.runs.groupby("algorithm.name"):
        assert rows.loc[name, "n"] == 2
        for metric in ("flatness/lambda1", "flatness/scale_free/gap_0.5"):
            assert rows.loc[name, metric] == pytest.approx(members[metric].mean())
            assert rows.loc[name, f"{metric}_std"] == pytest.approx(members[metric].std())
    columns = default_columns(report.metrics, report.question)
    table, _ = table_of(report, columns)
    assert table.header[:3] == ("algorithm.name", "test/accuracy", "loss")
    assert len(table.rows) == 2
    split = parts(table)
    assert all(part.header[0] == "algorithm.name" and len(part.header) <= 5 for part in split)
    together = [name for part in split for name in part.header[1:]]
    assert together == list(table.header[1:])


def test_differences_are_those_of_pairs_of_seeds(report):
    _, rows, _ = differences(report, ["flatness/lambda1"], "algorithm.name=fedavg")
    by_seed = report.runs.pivot_table("flatness/lambda1", "seed", "algorithm.name")
    expected = by_seed["fedsam"] - by_seed["fedavg"]
    assert rows["algorithm.name"].tolist() == ["fedsam"]
    assert rows["difference"][0] == pytest.approx(expected.mean())
    assert rows["n"][0] == 2
    half = 12.706 * expected.std() / np.sqrt(2)  # Student's t with one degree of freedom
    assert rows["high"][0] - rows["difference"][0] == pytest.approx(half, rel=1e-3)


def test_each_baseline_is_that_of_the_same_place_and_round(report):
    """Also where a key is null, and where a place has no baseline."""
    columns = ["flatness/lambda1"]
    parts = [
        report.runs.assign(**{"partition.alpha": alpha, "round": round})
        for alpha, round in ((0.1, 2), (0.1, 3), (None, 3))
    ]
    runs = pd.concat(parts, ignore_index=True)
    # Of the last place the baseline is not there.
    runs = runs.drop(
        runs.index[runs["partition.alpha"].isna() & (runs["algorithm.name"] == "fedavg")]
    ).reset_index(drop=True)
    by = ("algorithm.name", "partition.alpha", "round")
    table, rows, notes = differences(replace(report, runs=runs, by=by), columns, "fedavg")
    assert [row[:3] for row in table.rows] == [("fedsam", "0.1", "2"), ("fedsam", "0.1", "3")]
    assert rows["difference"][0] == pytest.approx(rows["difference"][1])
    assert notes == ("without a partner: 2 of 2 runs of fedsam, round=3",)
    null = runs["partition.alpha"].isna()
    table, *_ = differences(
        replace(report, runs=runs[null | (runs["round"] == 3)], by=by[:2]),
        columns,
        "partition.alpha=0.1",
        "latex",
    )
    assert [row[:2] for row in table.rows] == [("--", "fedsam")]
    assert table.header[-1] == "lambda1"
    for baseline, which in (("algorithm.name in [fedavg, fedsam]", "all"), ("fedcm", "none")):
        with pytest.raises(
            ConfigError, match=rf"--against = .*: selects {which} of the 4 finished"
        ):
            differences(report, columns, baseline)


def test_one_split_or_landscapes_alone_are_enough(sweeps):
    for question, metrics in (
        (Question(measures=("gap",), splits=("test",), effort=EFFORT), 2),
        (Question(measures=("landscape",), effort=EFFORT), 0),
    ):
        report = flatness_of_sweep("kept", question=question, uri=sweeps, local=True)
        columns = default_columns(report.metrics, question)
        assert len([c for c in columns if c.startswith("flatness/test/")]) >= metrics
        assert len(table_of(report, columns)[0].rows) == 2
        assert pictures_of_sweep(report)


def test_it_is_not_measured_again_and_actors_give_the_same(sweeps, report):
    again = flatness_of_sweep("kept", question=QUESTION, uri=sweeps)
    assert again.seconds == 0
    question = Question(measures=("gap",), splits=("train",), samples=700, effort=EFFORT)
    with_actors = flatness_of_sweep("kept", ["ray.address=auto"], question=question, uri=sweeps)
    assert with_actors.seconds > 0
    for i, of_run in with_actors.reports.items():
        subject = of_run.subject.checkpoints[-1]
        place = f"{subject.storage.location}/checkpoint-{subject.round:08d}.json"
        alone = flatness(place, ["tracking.enabled=false"], question=question, uri=None, local=True)
        assert alone.frame["value"].tolist() == of_run.frame["value"].tolist(), i


def test_pictures_share_their_scale_and_are_kept_and_reported(sweeps, report):
    figures = pictures_of_sweep(report)
    assert set(figures) == {"accuracy", "densities", "landscapes", "slices"}
    panes = [axes for axes in figures["landscapes"].axes if axes.get_title()]
    assert [axes.get_title() for axes in panes] == ["fedavg", "fedsam"]
    levels = [axes.collections[0].levels.tolist() for axes in panes]
    assert levels[0] == levels[1]
    client = MlflowClient(sweeps)
    kept = {file.path for file in client.list_artifacts(report.records.run_id, "flatness")}
    assert kept == {f"flatness/{name}.png" for name in figures}
    text = page.render(uri=sweeps, where="sweep='kept'", name="final")
    assert "<h2>Flatness</h2>" in text
    assert text.count("data:image/png;base64") == 4
    assert "flatness/lambda1" in text


def test_a_sweep_is_named_by_its_name_or_its_run(sweeps, report):
    assert sweep_named("kept", sweeps) == "kept"
    assert sweep_named(report.records.run_id, sweeps) == "kept"
    for other in (report.runs["run_id"][0], "nobody", "latest", "some/folder", "it's"):
        assert sweep_named(other, sweeps) is None


def test_what_cannot_be_measured_is_refused(sweeps, report):
    with pytest.raises(ConfigError, match=r"no checkpoint of it is in .*`keep_checkpoints: true`"):
        flatness_of_sweep("lost", question=QUESTION, uri=sweeps, local=True)
    with pytest.raises(
        ConfigError, match=r"--columns = 'lambda9': was not measured .*'lambda[1-5]'"
    ):
        chosen_columns(["gap_0.05", "lambda9"], report.metrics)
    assert chosen_columns(["gap_0.05"], report.metrics) == ["flatness/gap_0.05"]
