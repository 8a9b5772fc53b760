"""A study that tells rules of "best" apart: every answer about it names the same settings."""

import json
import re
import shutil
from typing import NamedTuple

import pytest
from mlflow.tracking import MlflowClient
from stored import ROUNDS, record

from rayfl.analysis import plots, report
from rayfl.analysis import runs as store
from rayfl.analysis.aggregate import summarize
from rayfl.analysis.compare import compare
from rayfl.cli.main import app
from rayfl.cli.sweep_progress import SweepProgress
from rayfl.cli.sweep_summary import as_json, best_points
from rayfl.tracking.store import TrackingStore
from tuning.callbacks import TrialUpdate
from tuning.config import Sweep
from tuning.papers.compare import compare as beside
from tuning.papers.compare import remarks
from tuning.papers.compare import table as table_beside
from tuning.papers.presets import Preset, Published
from tuning.plan import SweepPlan, trials
from tuning.results import summary
from tuning.sweep import SweepResult, TrialResult
from tuning.trial_run import TrialRun

KEYS = ("partition.alpha", "algorithm.rho")
SWEEP = {
    "name": "study",
    "base": {
        "algorithm": {"name": "fedsam"},
        "partition": {"name": "dirichlet"},
        "model": {"name": "mlp", "hidden": [16]},
        "federation": {"clients": 10, "cohort": 5, "rounds": ROUNDS, "local_epochs": 1},
    },
    "space": {
        "partition.alpha": {"grid": [0.1, 0.5]},
        "algorithm.rho": {"grid": [0.1, 0.2, 0.3, 0.4]},
    },
    "seeds": [0, 1, 2],
}
NAN, LESS = float("nan"), 4
STUDY: dict[tuple[float, int], list] = {
    # Accuracy of each seed; with a state, of one that ended otherwise after LESS rounds.
    (0.1, 0.1): [0.80, 0.82, 0.84],
    (0.1, 0.2): [0.95, (0.99, "stopped_early"), (0.99, "stopped_early")],
    (0.1, 0.3): [0.90, 0.90],  # a seed is missing
    (0.1, 0.4): [0.50, 0.50, 0.50],  # 0.99 before the code changed
    (0.5, 0.1): [0.70, 0.60, 0.80],
    (0.5, 0.2): [0.80, 0.60, 0.70],  # the same mean
    (0.5, 0.3): [0.90, 0.90, NAN],
    (0.5, 0.4): [0.30, 0.30, (0.99, "finished")],  # as if: it did not reach its last round
}
BEST = [(0.1, 0.1), (0.5, 0.1)]


class Study(NamedTuple):
    uri: str
    sweep: Sweep
    result: SweepResult


@pytest.fixture(scope="module")
def study(tmp_path_factory, empty_store):
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(empty_store, folder)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    client.create_experiment("rayfl", artifact_location=(folder / "artifacts").as_uri())
    kept, sweep = TrackingStore(uri, "rayfl"), Sweep.model_validate(SWEEP)
    rows = []
    for trial in trials(sweep, [dict(zip(KEYS, point, strict=True)) for point in STUDY]):
        point = tuple(trial.point.values())
        if trial.seed >= len(STUDY[point]):
            continue
        found = STUDY[point][trial.seed]
        value, state = found if isinstance(found, tuple) else (found, "finished")
        if point == (0.1, 0.4):
            record(
                kept, trial.config, curve(0.99), sweep="study", code_digest="old", data_digest="d"
            )
        length = ROUNDS if not isinstance(found, tuple) else LESS
        tags = {"sweep": "study", "state": state, "code_digest": "new", "data_digest": "d"}
        run_id = record(kept, trial.config, curve(value, length), **tags)
        left = TrialRun.of(client.get_run(run_id), sweep.metric)
        rows.append(TrialResult(**vars(left), trial=trial, log=None))
    return Study(uri, sweep, SweepResult(tuple(rows), "parent"))


def curve(value, rounds=ROUNDS):
    """The same accuracy in every round: final, best and last10 are one number."""
    costs = {"cost/bytes_up": 1.0, "cost/bytes_down": 1.0, "cost/backward_passes": 1.0}
    metrics = {"test/accuracy": value, "test/loss": 1 - value, "time/round_s": 1.0, **costs}
    return dict.fromkeys(range(1, rounds + 1), metrics)


def points(found):
    return [tuple(point[key] for key in KEYS) for point in found]


@pytest.fixture(scope="module")
def runs(study):
    return store.load("rayfl", study.uri, metrics=["last10", "best", "test/accuracy"])


@pytest.mark.parametrize("name", ["last10", "best", "test/accuracy"])
def test_results(runs, name):
    found = summarize(runs, KEYS, [name])
    rows = found.rows
    assert points(rows[rows["is_best"]].to_dict("records")) == BEST
    assert list(rows["n"]) == [3, 1, 2, 3, 3, 3, 3, 2]
    assert list(rows[f"{name}_n"]) == [3, 1, 2, 3, 3, 3, 2, 2]
    assert set(rows["rounds"]) == {ROUNDS}
    others = rows[["stopped_early", "interrupted", "superseded"]].to_numpy().tolist()
    assert others == [[0, 0, 0], [2, 0, 0], [0, 0, 0], [0, 0, 3], *[[0, 0, 0]] * 3, [0, 1, 0]]
    assert found.notes == (
        f"finished runs without {name}, left out of its mean: partition.alpha=0.5, rho=0.3 (1 of 3)",
        f"equal by {name} (0.7000), the first is marked best: partition.alpha=0.5, rho=0.1; "
        "partition.alpha=0.5, rho=0.2",
        f"a better {name} than the best, but of fewer seeds or a smaller share of the runs: "
        "partition.alpha=0.1, rho=0.3 (0.9000); partition.alpha=0.1, rho=0.2 (0.9500); "
        "partition.alpha=0.5, rho=0.3 (0.9000)",
        "fewer seeds than others: partition.alpha=0.1, rho=0.2 (1 of 3); "
        "partition.alpha=0.1, rho=0.3 (2 of 3); partition.alpha=0.5, rho=0.3 (2 of 3); "
        "partition.alpha=0.5, rho=0.4 (2 of 3)",
    )


def test_the_table_of_the_sweep_and_its_json(study, runs):
    assert points(best_points(study.result, study.sweep)) == BEST
    assert points(as_json(study.result, study.sweep, 0.0)["best"]) == BEST
    found, of_runs = (
        summary(study.result.rows, study.sweep),
        summarize(runs, KEYS, ["test/accuracy"]),
    )
    same = [*KEYS, "test/accuracy", "n", "rounds", "is_best"]
    assert found.rows[same].equals(of_runs.rows[same])
    assert found.notes == of_runs.notes


def test_the_display_of_the_sweep(study):
    progress = SweepProgress()
    progress.plan = SweepPlan(study.sweep, (), 24, None, None, 1, None)  # type: ignore[arg-type]
    for row in study.result.rows:
        progress.update(TrialUpdate(row.trial, row.state, row.rounds, row.value))
    assert progress.best() == (
        "best test/accuracy 0.8200 ± 0.0200 (n=3): partition.alpha=0.1, rho=0.1; "
        "0.7000 ± 0.1000 (n=3): partition.alpha=0.5, rho=0.1"
    )


def test_compare_has_the_same_means(runs):
    means = summarize(runs, KEYS).rows.set_index(list(KEYS))["last10"]
    result = compare(runs, "algorithm.rho=0.1", "algorithm.rho=0.4")
    first, second = result.rows.to_dict("records")
    assert (first["a"], first["b"], first["n"]) == (means[0.1, 0.1], means[0.1, 0.4], 3)
    assert (second["n"], second["rounds"]) == (2, ROUNDS)
    assert result.notes == (
        "left out, of 'algorithm.rho=0.4': 1 interrupted, 3 superseded",
        "without a partner, of 'algorithm.rho=0.1': partition.alpha=0.5, seed=2",
    )


def test_reproduce(study):
    published = Published.model_validate({"about": "a", "source": "s", "metric": "best"})
    found = beside(Preset("study", "full", study.sweep, published), study.result.rows)
    assert points(found.lines[i].point for i in found.best) == BEST
    table = table_beside(found)
    assert table.best == (0, 4)
    assert [row[table.header.index("n")] for row in table.rows[:3]] == ["3/3", "1/3", "2/2"]
    assert [line.rounds for line in found.lines] == [ROUNDS] * 8
    assert any("equal by best (0.7000)" in remark for remark in remarks(found))


def test_the_report(study):
    page = report.render("rayfl", study.uri)
    marked = re.findall(r'<tr class="best">(.*?)</tr>', page, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>\s*([^<]*)", row) for row in marked]
    found = {tuple(map(float, row[:2])) for row in cells}
    assert {(alpha, rho) for rho, alpha in found} == set(BEST)
    assert "of each task" in page
    assert "<b>3</b> superseded" in page
    assert "equal by last10 (0.7000)" in page


def test_a_heatmap_frames_them_and_names_what_it_leaves_out(runs):
    drawing = plots.heatmap(runs, ["algorithm.rho", "partition.alpha"])
    axes = drawing.figure.axes[0]
    frames = {(round(p.get_x() + 0.47), round(p.get_y() + 0.46)) for p in axes.patches}
    assert frames == {(0, 0), (0, 1)}
    texts = sorted(text.get_text() for text in axes.texts)
    assert [t for t in texts if t.startswith("n=")] == ["n=1", "n=2", "n=2", "n=2"]
    bold = {t.get_text() for t in axes.texts if t.get_fontweight() == "bold"}
    assert bold == {"0.820", "0.700"}
    assert drawing.notes[0].startswith("n = 3 where a cell says nothing else")
    lost = runs[~((runs["last10"] > 0.94) & (runs["state"] == "finished"))]
    notes = plots.heatmap(lost, ["algorithm.rho", "partition.alpha"]).notes
    assert (
        "cells left out, for no finished run has a number: rho=0.2, partition.alpha=0.1 "
        "(2 stopped early)" in notes
    )


def test_the_command(study, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    command = ["results", "--uri", study.uri, "--format", "json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    best = [row for row in json.loads(done.stdout) if row["is_best"]]
    assert sorted(points(best)) == BEST
    asked = [*command, "--where", "code_digest=old"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    (row,) = json.loads(done.stdout)
    assert (row["n"], row["last10"], row["rounds"]) == (3, pytest.approx(0.99), ROUNDS)
