"""Results against the numbers that were put in, computed independently."""

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from stored import ALPHAS, RHOS, ROUNDS, config, record, rounds, top

from rayfl.analysis import aggregate, tables
from rayfl.analysis import runs as store
from rayfl.analysis.metrics import COSTS, metric
from rayfl.analysis.store import address_of
from rayfl.errors import ConfigError
from rayfl.tracking.defaults import default_uri
from rayfl.tracking.store import TrackingStore

BY = ["algorithm.name", "algorithm.rho", "partition.alpha"]


@pytest.fixture(scope="module")
def runs(stored):
    return store.load("rayfl", stored.uri, metrics=["last10", "rounds_to_0.7", "bytes_to_0.66"])


@pytest.fixture
def expected(stored):
    """Mean, standard deviation and count by pandas."""
    known = stored.known.assign(rho=stored.known["rho"].fillna(-1))
    return known.groupby(["algorithm", "rho", "alpha"])["last10"].agg(["mean", "std", "count"])


def test_what_counts(runs, stored):
    finished = runs[runs["state"] == "finished"]
    assert set(finished["run_id"]) == set(stored.known["run_id"])  # the latest finished of each
    assert runs["config_hash"].is_unique
    others = runs.loc[runs["state"] != "finished", "state"]
    assert sorted(others) == ["failed", "infeasible", "interrupted", "running", "stopped_early"]
    reasons = runs.set_index("state")["reason"]
    assert reasons["infeasible"] == "partition.alpha = 1e-9: no client has a sample"
    assert reasons["finished"].isna().all()
    assert runs.loc[runs["state"] == "failed", "sweep"].item() == "grid"


def test_config_values_have_their_types(runs):
    run = runs.iloc[0]
    assert (run["model.hidden"], run["federation.clip_norm"], run["seed"]) == ((16,), None, 0)
    assert run["tracking.enabled"] is True
    assert run["algorithm.name"] == "fedavg"
    assert np.isnan(run["algorithm.rho"])  # fedavg has none


def test_axes_are_what_varies(runs):
    assert sorted(store.axes(runs)) == BY  # not the seed, nor where a run went, nor its metrics
    assert not any(store.is_config_key(key) for key in ("data.root", "resources.num_actors"))


def test_mean_and_spread_over_seeds(runs, expected):
    summary = aggregate.summarize(runs, BY, ["last10"])
    rows = summary.rows
    assert list(rows["n"]) == list(expected["count"]) == [3] * 6
    np.testing.assert_allclose(rows["last10"].astype(float), expected["mean"], rtol=1e-12)
    np.testing.assert_allclose(rows["last10_std"].astype(float), expected["std"], rtol=1e-12)
    assert list(rows["algorithm.rho"]) == [None, None, 0.05, 0.05, 0.1, 0.1]
    assert list(rows["rounds"]) == [ROUNDS] * 6
    assert summary.notes == (
        "a better last10 than the best, but of fewer seeds or a smaller share of the runs: "
        "fedwmsam, rho=0.1, partition.alpha=0.5 (0.8370)",
    )


def test_the_best_has_a_number_for_all_of_its_seeds(runs):
    """Seeds of the last row failed or were stopped early: its mean is over those that survived."""
    by_task = [False, False, False, True, True, False]
    assert list(aggregate.summarize(runs, BY).rows["is_best"]) == by_task
    summary = aggregate.summarize(runs[runs["state"] == "finished"], BY)
    assert list(summary.rows["is_best"]) == [False] * 4 + [True, True]
    of_tasks = [
        summary.rows.loc[summary.rows["partition.alpha"] == alpha, "last10"]
        .sort_values()
        .index[::-1]
        for alpha in ALPHAS
    ]
    assert sorted(summary.ranking[:2]) == sorted(order[0] for order in of_tasks)
    assert sorted(summary.ranking[4:]) == sorted(order[2] for order in of_tasks)
    assert summary.notes == ()
    for state in ("running", "interrupted"):  # these may still finish
        some = runs[runs["state"].isin(["finished", state])]
        assert aggregate.summarize(some, BY).ranking == summary.ranking


def test_other_states_have_columns_of_their_own(runs):
    rows = aggregate.summarize(runs, BY).rows
    for state in ("failed", "stopped_early", "infeasible", "interrupted", "running"):
        assert list(rows[state]) == [0] * 5 + [1]


def test_the_order_does_not_depend_on_the_runs(runs):
    shuffled = runs.sample(frac=1, random_state=1)
    a, b = (
        aggregate.summarize(r, BY).rows.drop(columns=["last10", "last10_std"])
        for r in (runs, shuffled)
    )
    pd.testing.assert_frame_equal(a, b)


def test_a_row_over_more_than_seeds_says_so(runs):
    summary = aggregate.summarize(runs, ["algorithm.name"])
    assert list(summary.rows["n"]) == [6, 12]
    assert summary.notes[0] == (
        "means are over other keys than the seed too: algorithm.rho, partition.alpha"
    )


def test_lower_is_better_for_losses_and_costs(stored):
    runs = store.load("rayfl", stored.uri, metrics=["seconds", "loss", "train/loss"])
    rows = aggregate.summarize(runs, ["seed"], ["seconds"]).rows
    finished = rows[rows["n"] > 0]
    assert list(finished["is_best"]) == [True, False, False]  # each seed takes longer than the last
    expected = stored.known.groupby("seed")["seconds"].mean()
    np.testing.assert_allclose(finished["seconds"].astype(float), expected)
    assert aggregate.summarize(runs, BY, ["train/loss"]).rows["train/loss"][0] == pytest.approx(
        2.5 * 0.8**ROUNDS
    )


ACCURACIES = ("test/accuracy", "client/accuracy_mean", "test/class/cat", "test/domain/Art")
ACCURACIES += ("test/domain_worst",)


def test_less_swing_is_better_and_more_agreement(stored):
    """Each run's accuracy rises without a fall, by `rounds`: what is left of the trend is its curvature."""
    names = ["accuracy_oscillation", "accuracy_overshoot"]
    runs = store.load("rayfl", stored.uri, "algorithm.name=fedavg", names)
    for _, run in runs[runs["state"] == "finished"].iterrows():
        a = np.array([1 - 0.6**r for r in range(1, ROUNDS + 1)])
        a *= top("fedavg", None, run["partition.alpha"], run["seed"])
        rest = a[1:-1] - (a[:-2] + a[1:-1] + a[2:]) / 3
        assert run["accuracy_oscillation"] == pytest.approx(rest.std())
        assert run["accuracy_overshoot"] == 0
    swings = [*names, *(f"validation_{name}" for name in names), "echo_reversals"]
    assert not any(metric(name).higher for name in swings)
    aligned = ["update/agreement", "update/cos_previous", "update/cos_momentum"]
    assert all(metric(name).higher for name in (*aligned, *ACCURACIES))
    rows = aggregate.summarize(runs, ["seed"], names).rows
    assert rows["is_best"].tolist() == (rows[names[0]] == rows[names[0]].min()).tolist()
    assert metric("echo_reversals").by_round == "update/cos_previous"
    assert metric("accuracy_overshoot").by_round == "test/accuracy"
    assert metric("accuracy_overshoot").validation == "validation_accuracy_overshoot"


@pytest.mark.parametrize("target", [0.66, 0.7, 0.8])  # 0.66 is none of the recorded targets
@pytest.mark.parametrize("cost", [*COSTS])
def test_costs_up_to_a_target(stored, target, cost):
    """Counted by hand up to the first round at the target; who never gets there has no number."""
    name = f"{cost}_to_{target}"
    runs = store.load("rayfl", stored.uri, "algorithm.name=fedavg,partition.alpha=0.1", [name])
    spent = []
    for seed in range(3):
        total = 0.0
        for metrics in rounds(top("fedavg", None, 0.1, seed), seed).values():
            up_and_down = metrics["cost/bytes_up"] + metrics["cost/bytes_down"]
            total += {
                "rounds": 1,
                "bytes": up_and_down,
                "seconds": metrics["time/round_s"],
                "backward_passes": metrics["cost/backward_passes"],
            }[cost]
            if metrics["test/accuracy"] >= target:
                spent.append((seed, total))
                break
    found = runs.set_index("seed")[name].dropna()
    assert dict(found) == pytest.approx(dict(spent))
    row = aggregate.summarize(runs, [], [name]).rows.iloc[0]
    assert row[f"{name}_reached"] == f"{len(spent)}/3"
    assert row["n"] == 3
    if spent:
        assert row[name] == pytest.approx(np.mean([total for _, total in spent]))
    else:
        assert not row["is_best"]


def test_reached_more_often_beats_faster():
    """A lucky seed that got there is not better than a setting that always does."""
    runs = pd.DataFrame(
        [
            {"a.b": 1, "seed": seed, "state": "finished", "rounds_to_0.7": value}
            for seed, value in enumerate([3.0, np.nan, np.nan])
        ]
        + [{"a.b": 2, "seed": s, "state": "finished", "rounds_to_0.7": 9.0} for s in range(3)]
    )
    rows = aggregate.summarize(runs, ["a.b"], ["rounds_to_0.7"]).rows
    assert list(rows["rounds_to_0.7_reached"]) == ["1/3", "3/3"]
    assert list(rows["is_best"]) == [False, True]


def test_histories(stored):
    known = stored.known.iloc[7]
    runs = store.load("rayfl", stored.uri, f"run_id={known['run_id']}")
    frame = store.histories(runs, ["test/accuracy", "server/alpha"], stored.uri)
    truth = rounds(
        top(known["algorithm"], known["rho"], known["alpha"], known["seed"]), known["seed"]
    )
    assert list(frame["round"]) == list(truth)
    assert list(frame["test/accuracy"]) == [m["test/accuracy"] for m in truth.values()]
    np.testing.assert_allclose(frame["server/alpha"], 0.1 + 0.01 * frame["round"])


def test_all_experiments_unless_one_is_named(stored):
    assert set(store.load(uri=stored.uri)["experiment"]) == {"rayfl", "other"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiment": "ryfl"}, r"'ryfl': is not in .*\(did you mean 'rayfl'\?\); it has .*rayfl"),
        (
            {"experiment": "empty"},
            "no rayfl run in experiment 'empty'.*experiments: .*other, rayfl",
        ),
        ({"where": "algorithm.rho=3"}, r"selects none of the .* algorithm.rho is 0.05, 0.1$"),
        ({"where": "algorithm.roh=3"}, r"algorithm.roh: no run has this key \(did you mean"),
        ({"metrics": ["lats10"]}, r"--metric = 'lats10': no run has it \(did you mean 'last10'"),
        ({"metrics": ["rounds_to_70"]}, "the target must be an accuracy, .* as in rounds_to_0.7"),
        ({"uri": "sqlite:////nowhere/mlflow.db"}, "there is no such file; give --uri"),
        ({"uri": "gopher://x"}, "MLflow cannot use it"),
    ],
)
def test_what_is_not_there_is_named(stored, arguments, message):
    with pytest.raises(ConfigError, match=message) as raised:
        store.load(**({"uri": stored.uri} | arguments))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("old", ["federation.cohort_size", "federation.dropout"])
def test_runs_of_an_earlier_version_are_refused(store_here, old):
    uri = default_uri()
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("rayfl"), tags={"rayfl.config_hash": "0"})
    client.log_param(run.info.run_id, old, "0.1")
    with pytest.raises(ConfigError, match=f"{old} is now .* use a new MLflow store") as raised:
        store.load(uri=uri)
    assert "\n" not in str(raised.value)


def test_the_newest_version_counts_and_a_run_without_one_is_none(tmp_path, store_here):
    uri = default_uri()
    MlflowClient(uri).create_experiment("rayfl", (tmp_path / "artifacts").as_uri())
    kept, run = TrackingStore(uri, "rayfl"), config("fedavg", None, 0.1, 0)

    def states():
        return dict(
            store.load(uri=uri, metrics=["last10"])[["state", "last10"]].to_numpy().tolist()
        )

    def add(value, state="finished", code="", data="", last=ROUNDS):
        tags = {"state": state, "code_digest": code, "data_digest": data}
        record(kept, run, rounds(value, 0, last=last), **tags)

    add(0.2)
    add(0.5, code="a", data="x")
    first = states()
    add(0.9, "infeasible", last=1)
    assert states() == first
    assert sorted(first) == ["finished", "superseded"]
    add(0.7, "failed", code="a", data="y", last=1)
    assert sorted(states()) == ["failed", "superseded"]


def test_a_password_is_not_shown():
    assert address_of("http://me:secret@host:5000") == "http://...@host:5000"
    assert address_of("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"


def test_the_fixture_has_what_it_says(stored):
    """Its hashes are those of its configs: the identity that runs are counted by."""
    assert len(stored.known) == 3 * len(ALPHAS) * (1 + len(RHOS))
    first = stored.known.iloc[0]
    assert stored.hashes[first["run_id"]] == config("fedavg", None, 0.1, 0).hash


def test_tables_mark_the_best_and_count_what_reached(runs):
    runs = runs[runs["state"] == "finished"]
    summary = aggregate.summarize(runs, BY, ["last10", "rounds_to_0.7", "bytes_to_0.66"])
    table = tables.table_of(summary)
    assert table.header[3:7] == ("last10", "rounds_to_0.7", "reached", "bytes_to_0.66 (MB)")
    assert table.best == (4, 5)
    row = summary.rows.iloc[5]
    assert table.rows[5][3] == f"{row['last10']:.4f} ± {row['last10_std']:.4f}"
    assert table.rows[5][6].startswith(f"{row['bytes_to_0.66'] / 1e6:.2f} ± ")
    assert table.rows[0][1] == "–"
    latex = tables.text_of(tables.table_of(summary, "latex"), summary.rows, "latex")
    assert latex.count(r"\\") == 7
    assert latex.count(r"\textbf") == 2 * len(summary.metrics)
    assert r"rounds\_to\_0.7" in latex
    assert "±" not in latex
    markdown = tables.text_of(table, summary.rows, "markdown").splitlines()
    assert {line.count("|") for line in markdown} == {len(table.header) + 1}
    assert "**" in markdown[-1]


def test_a_store_where_no_run_has_ended_says_so(tmp_path, empty_store):
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = TrackingStore(uri, "rayfl")
    record(tracking, config("fedavg", None, 0.5, 0), {}, "RUNNING")
    with pytest.raises(ConfigError, match=r"'last10': no run has it, for a run gets it at its end"):
        store.load(uri=uri, metrics=["last10"])
