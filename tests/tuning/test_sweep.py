"""Whole sweeps: what is missing runs, what fails is a row, and MLflow has every trial once."""

import pytest
from mlflow.tracking import MlflowClient
from sweeps import runs

from rayfl.errors import ConfigError
from rayfl.experiment import run as run_one
from tuning.config import load_sweep
from tuning.sweep import run

CHECKPOINTS = "base.checkpoint.every=auto"


def table(result):
    return {
        row.trial.hash: (row.state, row.rounds, row.value, row.model_sha256) for row in result.rows
    }


@pytest.mark.slow
def test_only_what_is_missing_runs(ray_session, sweep_file, tmp_path):
    """The same sweep again runs nothing, a wider one what it adds; trials are as runs of their own."""
    path, started = sweep_file(seeds=[1]), []

    def on_update(update):
        if update.state == "running" and update.rounds == 0:
            started.append(update.trial.hash)

    first = run(load_sweep(path), on_update=on_update)
    assert len(started) == 2
    assert {row.state for row in first.rows} == {"finished"}
    again = run(load_sweep(path), on_update=on_update)
    assert len(started) == 2
    assert table(again) == table(first)
    wider = run(load_sweep(path, ["space.algorithm.rho.grid=[0.1,0.2,0.05]"]), on_update=on_update)
    assert len(started) == 3
    assert table(wider).items() > table(first).items()

    trials = {run.data.tags["rayfl.config_hash"]: run for run in runs(tmp_path)}
    (parent,) = runs(tmp_path, "sweep")
    assert len(trials) == len(runs(tmp_path)) == 3
    assert parent.info.run_id == wider.parent_id == first.parent_id
    one = first.rows[0].trial.experiment
    alone = run_one(one, local=True)
    assert first.rows[0].model_sha256 == alone.model_sha256
    mine, own = (
        trials[one.hash],
        MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(alone.run_id),
    )
    assert mine.data.params == own.data.params
    assert mine.data.metrics.keys() == own.data.metrics.keys()
    assert mine.data.tags.keys() > own.data.tags.keys()
    assert mine.data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.slow
def test_trials_are_compared_by_what_is_held_out(ray_session, sweep_file, tmp_path):
    """Under a scheduler too; the numbers are those of runs of their own."""
    held_out = ["base.data.validation=0.2", "base.federation.rounds=4"]
    asha = ["scheduler={name: asha, grace_period: 4}", "stop.plateau.rounds=4"]
    result = run(load_sweep(sweep_file(), [*held_out, *asha]))
    assert {row.state for row in result.rows} == {"finished"}
    for row in result.rows:
        alone = run_one(row.trial.config, local=True)
        assert row.value == alone.history["validation/accuracy"].iloc[-1]
        assert row.value != alone.history["test/accuracy"].iloc[-1]
        assert row.model_sha256 == alone.model_sha256
    assert all("validation_accuracy_last10" in run.data.metrics for run in runs(tmp_path))


@pytest.mark.slow
def test_what_cannot_run_is_a_row_and_the_rest_finishes(ray_session, sweep_file, tmp_path):
    space = {
        "algorithm": {
            "grid": [
                {"name": "fedsam"},
                {"name": "fedwmsam", "alpha_min": 0.8, "alpha_max": 0.2},
                {"name": "failing:Explodes"},
                {"name": "failing:Dies"},
                {"name": "failing:EndsOn"},
            ]
        }
    }
    result = run(load_sweep(sweep_file(space=space), ["base.federation.clip_norm=null"]))
    rows = {row.trial.point["algorithm"]["name"]: row for row in result.rows}
    assert {name: row.state for name, row in rows.items()} == {
        "fedsam": "finished",
        "fedwmsam": "infeasible",
        "failing:Explodes": "failed",
        "failing:Dies": "failed",
        "failing:EndsOn": "failed",
    }
    assert "alpha_min = 0.8 exceeds alpha_max = 0.2" in rows["fedwmsam"].reason
    assert "is not finite; lower base.federation.lr" in rows["failing:Explodes"].reason
    assert "(server state 'm') is not finite" in rows["failing:EndsOn"].reason
    assert "the client actor died, 4 times in a row" in rows["failing:Dies"].reason
    assert "Traceback" in rows["failing:Dies"].log.read_text()
    assert not result.succeeded
    found = runs(tmp_path)
    assert len(found) == 5
    states = {run.data.tags["rayfl.state"]: run.info.status for run in found}
    assert states == {"finished": "FINISHED", "failed": "FAILED", "infeasible": "FAILED"}


@pytest.mark.slow
def test_a_missing_dataset_is_a_row_of_its_own(ray_session, sweep_file):
    space = {"data": {"grid": [{"name": "digits"}, {"name": "npz", "path": "/nowhere.npz"}]}}
    result = run(load_sweep(sweep_file(space=space)))
    assert [row.state for row in result.rows] == ["finished", "infeasible"]
    assert "data.path = '/nowhere.npz'" in result.rows[1].reason


def test_none_that_can_run_is_an_error_before_anything_starts(sweep_file, tmp_path):
    with pytest.raises(ConfigError, match=r"none of the 2 trials can run: base.federation.lr = -1"):
        run(load_sweep(sweep_file(), ["base.federation.lr=-1"]))
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_asha_cuts_at_its_rungs(ray_session, sweep_file):
    """Rungs at rounds 2 and 4: every trial ends at one of them, or runs all 8 rounds."""
    space = {"federation.lr": {"grid": [0.1, 1e-5, 0.05, 1e-4, 1e-3, 0.02]}}
    overrides = ["scheduler={name: asha, grace_period: 2, reduction_factor: 2}", CHECKPOINTS]
    result = run(load_sweep(sweep_file(space=space), [*overrides, "base.federation.rounds=8"]))
    assert {row.rounds for row in result.rows} <= {2, 4, 8}
    cut = [row for row in result.rows if row.state == "stopped_early"]
    assert cut
    for row in cut:
        assert row.reason.startswith(f"round {row.rounds}: ASHA stopped it with test/accuracy 0.")
    assert any(row.state == "finished" and row.rounds == 8 for row in result.rows)
    assert result.succeeded


@pytest.mark.slow
def test_population_based_training_exploits_at_exact_rounds(ray_session, sweep_file, tmp_path):
    overrides = [
        "scheduler={name: pbt, mutate: [federation.lr], every: 2, quantile: 0.5}",
        "base.federation.rounds=8",
    ]
    space = {"federation.lr": {"grid": [1e-6, 0.02, 0.1]}}
    result = run(load_sweep(sweep_file(space=space), overrides))
    assert [row.state for row in result.rows] == ["finished"] * 3
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    curves = [
        {m.step: m.value for m in client.get_metric_history(row.run_id, "mutated/federation.lr")}
        for row in result.rows
    ]
    assert all(sorted(curve) == list(range(1, 9)) for curve in curves)
    changes = {r for curve in curves for r in range(2, 9) if curve[r] != curve[r - 1]}
    assert changes
    assert changes <= {3, 5, 7}


@pytest.mark.slow
def test_median_stopping_ends_a_trial_that_is_worse_than_the_others(ray_session, sweep_file):
    overrides = [
        "scheduler={name: median, grace_period: 4, every: 2, min_samples: 2}",
        "base.federation.rounds=8",
        CHECKPOINTS,
    ]
    space = {"federation.lr": {"grid": [0.1, 0.05, 1e-6]}}
    result = run(load_sweep(sweep_file(space=space), overrides))
    found = [(row.trial.point["federation.lr"], row.state, row.rounds) for row in result.rows]
    expected = [(0.1, "finished", 8), (0.05, "finished", 8), (1e-6, "stopped_early", 4)]
    assert found == expected
    assert result.rows[-1].reason.startswith("round 4: Median stopped it with test/accuracy 0.")


@pytest.mark.long
def test_optuna_goes_on_from_the_points_that_it_has(ray_session, sweep_file):
    """Every point with every seed; more samples ask for more points, and run no others."""
    pytest.importorskip("optuna")
    path = sweep_file(seeds=[0, 1], space={"algorithm.rho": {"uniform": [0.01, 0.2]}})
    started = []

    def on_update(update):
        if update.state == "running" and update.rounds == 0:
            started.append(update.trial.hash)

    first = run(load_sweep(path, ["search={name: optuna, num_samples: 2}"]), on_update=on_update)
    assert len(started) == len(first.rows) == 4
    assert {row.state for row in first.rows} == {"finished"}
    values = {row.trial.point["algorithm.rho"] for row in first.rows}
    assert len(values) == 2
    assert all(0.01 <= value <= 0.2 for value in values)
    assert {row.trial.seed for row in first.rows} == {0, 1}
    more = run(load_sweep(path, ["search={name: optuna, num_samples: 3}"]), on_update=on_update)
    assert len(started) == len(set(started)) == len(more.rows) == 6
    assert table(more).items() > table(first).items()
