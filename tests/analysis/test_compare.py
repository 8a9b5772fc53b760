"""Paired comparisons against scipy's own, and what is said about runs without a partner."""

import numpy as np
import pytest
from scipy import stats
from stored import ROUNDS

from rayfl.analysis import runs as store
from rayfl.analysis.compare import compare, table_of
from rayfl.errors import ConfigError

LEFT_OUT = (
    "left out, of 'fedwmsam{}algorithm.rho=0.1': 1 stopped early, 1 failed, 1 infeasible, "
    "1 interrupted, 1 running"
)


@pytest.fixture(scope="module")
def runs(stored):
    return store.load("rayfl", stored.uri, metrics=["last10", "final", "rounds_to_0.8", "seconds"])


def pair(stored, alpha, rho):
    known = stored.known[stored.known["alpha"] == alpha].sort_values("seed")
    a = known[(known["algorithm"] == "fedwmsam") & (known["rho"] == rho)]
    return a["last10"].to_numpy(), known.loc[known["algorithm"] == "fedavg", "last10"].to_numpy()


def test_differences_over_paired_seeds(runs, stored):
    """Each setting of what varies on both sides is a row; scipy's paired t test agrees."""
    result = compare(runs, "fedwmsam and algorithm.rho=0.1", "fedavg")
    assert result.by == ("partition.alpha",)
    for row in result.rows.to_dict("records"):
        a, b = pair(stored, row["partition.alpha"], 0.1)
        interval = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (row["a"], row["b"]) == pytest.approx((a.mean(), b.mean()))
        assert row["difference"] == pytest.approx((a - b).mean())
        np.testing.assert_allclose((row["low"], row["high"]), interval, rtol=1e-9)
        assert (row["n"], row["verdict"]) == (3, "A is better (only 3 pairs)")
        assert row["rounds"] == ROUNDS
    assert "±" not in str(table_of(result).rows)
    assert result.notes == (LEFT_OUT.format(" and "),)


def test_the_better_side_depends_on_the_metric(runs):
    longer = runs.assign(seconds=runs["seconds"] + 5.0 * (runs["algorithm.name"] == "fedavg"))
    verdicts = compare(longer, "fedavg", "fedwmsam,algorithm.rho=0.1", "seconds").rows["verdict"]
    assert set(verdicts) == {"B is better (only 3 pairs)"}


def test_no_clear_difference(runs):
    noisy = runs.assign(last10=[0.5 + 0.1 * (int(h, 16) % 7) for h in runs["config_hash"]])
    seen = compare(noisy, "fedwmsam,algorithm.rho=0.1", "fedavg").rows
    for row in seen.to_dict("records"):
        assert (row["low"] <= 0 <= row["high"]) == row["verdict"].startswith("no clear difference")


def test_seeds_without_a_partner_are_listed(runs):
    fewer = runs[~((runs["algorithm.name"] == "fedavg") & (runs["seed"] == 1))]
    result = compare(fewer, "fedwmsam,algorithm.rho=0.1", "fedavg")
    assert list(result.rows["n"]) == [2, 2]
    left_out, note = result.notes
    assert left_out == LEFT_OUT.format(",")
    assert note == (
        "without a partner, of 'fedwmsam,algorithm.rho=0.1': partition.alpha=0.1, seed=1; "
        "partition.alpha=0.5, seed=1"
    )


def test_one_pair_is_too_few_for_an_interval(runs):
    result = compare(runs[runs["seed"] == 1], "fedwmsam,algorithm.rho=0.1", "fedavg")
    assert result.rows["low"].isna().all()
    assert set(result.rows["verdict"]) == {"too few pairs: an interval needs two"}


def test_who_never_reached_a_target_is_left_out_and_named(runs, stored):
    result = compare(runs, "fedwmsam,algorithm.rho=0.1", "fedavg", "rounds_to_0.8")
    known = stored.known.assign(
        rounds=lambda k: k["run_id"].map(runs.set_index("run_id")["rounds_to_0.8"])
    )
    fedavg = known[known["algorithm"] == "fedavg"].set_index(["alpha", "seed"])["rounds"]
    fedwmsam = known[known["rho"] == 0.1].set_index(["alpha", "seed"])["rounds"]
    both = (fedavg.notna() & fedwmsam.notna()).groupby("alpha").sum()
    assert list(result.rows["n"]) == list(both)
    assert sum(both) < 6
    assert "did not reach the target" in result.notes[1]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            "fedwmsam",
            "fedavg",
            r"'fedwmsam': seed 0 has 2 runs \(algorithm.rho is 0.05, 0.1\); name",
        ),
        (
            "fedwmsam",
            "fedsam",
            "'fedsam': no finished run; 0 in .* algorithm.name is fedavg, fedwmsam",
        ),
        ("fedavg", "fedavg,seed=1", "both select run"),
        ("fedavg,seed=1", "fedwmsam,algorithm.rho=0.1,seed=2", "seed is 1 there and 2 here"),
    ],
)
def test_what_cannot_be_paired(runs, a, b, message):
    with pytest.raises(ConfigError, match=message):
        compare(runs, a, b)


def test_a_key_that_differs_must_be_named(runs):
    """An accidental difference of another key is no comparison of algorithms."""
    is_a = runs["algorithm.name"] == "fedavg"
    apart = runs.assign(**{"federation.lr": np.where(is_a, 0.1, 0.01)})
    with pytest.raises(ConfigError, match=r"federation.lr is 0.01 there and 0.1 here; name"):
        compare(apart, "fedwmsam,algorithm.rho=0.1", "fedavg")
    named = compare(
        apart, "fedwmsam,algorithm.rho=0.1,federation.lr=0.01", "fedavg,federation.lr=0.1"
    )
    assert list(named.rows["n"]) == [3, 3]
