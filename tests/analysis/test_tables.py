"""Tables for papers, pivots, and the choice by validation data, on runs whose numbers are plain."""

import json
from math import nan

import pandas as pd
import pytest

from rayfl.analysis.aggregate import summarize
from rayfl.analysis.naming import latex_headers, latex_values
from rayfl.analysis.pivot import pivot
from rayfl.analysis.tables import table_of, text_of

BY = ["algorithm.name", "partition.alpha"]


def runs(*rows, **columns):
    """Finished runs of 40 rounds, from algorithm, alpha and the accuracies of seeds 0, 1, ..."""
    return pd.DataFrame(
        [
            {"algorithm.name": name, "partition.alpha": alpha, "seed": seed, "last10": value}
            | {"state": "finished", "rounds": 40.0}
            | {key: of_row[(name, alpha)][seed] for key, of_row in columns.items()}
            for name, alpha, *values in rows
            for seed, value in enumerate(values)
        ],
        dtype=object,
    )


TABLE = [
    ("fedavg", 0.1, 0.70, 0.72),
    ("fedavg", 0.6, 0.805, 0.825),
    ("fedsam", 0.1, 0.705, 0.725),
    ("fedsam", 0.6, 0.801, 0.803),
    ("x_y", 0.1, 0.50, 0.50),
    ("x_y", 0.6, 0.9),  # one seed: its better mean is not the best
]


def test_a_table_for_papers():
    summary = summarize(runs(*TABLE), BY)
    assert text_of(table_of(summary, "latex", underline=True), summary.rows, "latex") == (
        r"""\begin{tabular}{llrrr}
\toprule
Algorithm & $\alpha$ & last10 (\%) & n & rounds \\
\midrule
fedavg & 0.1 & \underline{71.0 $\pm$ 1.4} & 2 & 40 \\
fedavg & 0.6 & \textbf{\boldmath 81.5 $\pm$ 1.4} & 2 & 40 \\
fedsam & 0.1 & \textbf{\boldmath 71.5 $\pm$ 1.4} & 2 & 40 \\
fedsam & 0.6 & 80.2 $\pm$ 0.1 & 2 & 40 \\
x\_y & 0.1 & 50.0 $\pm$ 0.0 & 2 & 40 \\
x\_y & 0.6 & \underline{90.0} & 1 & 40 \\
\bottomrule
\end{tabular}"""
    )
    assert "underline" not in text_of(table_of(summary, "latex"), summary.rows, "latex")
    markdown = text_of(table_of(summary), summary.rows, "markdown")
    assert markdown.count("**") == 4
    assert "**0.7150 ± 0.0141**" in markdown


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "csv", "json"])
def test_a_pivot(form):
    """Algorithms down, alphas across; the best of each column by the same rule."""
    summary = summarize(runs(*TABLE), BY)
    table, numbers, notes = pivot(summary, 1, form)
    assert table.bold == {(1, 1), (0, 2)}
    assert notes[:2] == (
        f"last10{' (%)' if form == 'latex' else ''}; best of each column marked",
        "n = 2 where a cell says nothing else; rounds: 40",
    )
    if form in ("csv", "json"):
        rows = json.loads(text_of(table, numbers, "json"))
        assert rows[2] == {
            "algorithm.name": "x_y",
            **{
                "partition.alpha=0.1": 0.5,
                "partition.alpha=0.1_std": 0.0,
                "partition.alpha=0.1_n": 2,
            },
            **{
                "partition.alpha=0.6": 0.9,
                "partition.alpha=0.6_std": None,
                "partition.alpha=0.6_n": 1,
            },
        }
    elif form == "latex":
        assert table.header == ("Algorithm", r"$\alpha$ = 0.1", r"$\alpha$ = 0.6")
        assert table.rows[2] == (r"x\_y", r"50.0 $\pm$ 0.0", "90.0 (n=1)")
    else:
        assert table.header == ("algorithm.name", "partition.alpha=0.1", "partition.alpha=0.6")
        assert table.rows[2] == ("x_y", "0.5000 ± 0.0000", "0.9000 (n=1)")


def test_a_pivot_whose_rows_are_tasks():
    """There the best of each row is what compares methods; a cell without a run stays empty."""
    summary = summarize(runs(*TABLE[:-1]), BY[::-1])
    table, _, notes = pivot(summary, 1)
    assert table.header == ("partition.alpha", "fedavg", "fedsam", "x_y")
    assert table.bold == {(0, 2), (1, 1)}
    assert table.rows[1][-1] == "–"
    assert notes[0] == "last10; best of each task marked"


@pytest.mark.parametrize("form", ["table", "latex"])
def test_a_target_that_some_runs_reached(form):
    """A mean over those that did is none over all; a cell of runs that did not is none without runs."""
    rounds = {("a", 0.1): [20.0, nan], ("a", 0.6): [10.0, 12.0], ("b", 0.1): [nan]}
    every = runs(("a", 0.1, 0.8, 0.6), ("a", 0.6, 0.9, 0.9), ("b", 0.1, 0.5))
    every["rounds_to_0.7"] = [v for values in rounds.values() for v in values]
    summary = summarize(every, BY, ["rounds_to_0.7"])
    assert "fewer seeds than others: b, partition.alpha=0.1 (1 of 2)" in summary.notes
    table, numbers, notes = pivot(summary, 1, form)
    nothing = "--" if form == "latex" else "–"
    assert [row[1] for row in table.rows] == ["20.0 (1/2)", f"{nothing} (0/1)"]
    assert table.rows[1][2] == nothing
    assert "(k/n): k of n runs reached the target, and the mean is over those" in notes[1]
    assert numbers["partition.alpha=0.1_reached"].tolist() == ["1/2", "0/1"]


def test_validation_chooses_and_the_test_set_is_shown():
    found = {"validation_accuracy_last10": {("a", 0.1): [0.6, 0.7], ("b", 0.1): [0.7, 0.8]}}
    every = runs(("a", 0.1, 0.9, 0.9), ("b", 0.1, 0.8, 0.8), **found)
    summary = summarize(every, BY)
    assert list(summary.rows["is_best"]) == [False, True]
    assert list(summary.rows["last10"]) == [0.9, 0.8]
    assert table_of(summary).bold == {(1, 2)}
    assert summary.notes == (
        "best by validation accuracy (validation_accuracy_last10); the last10 that is shown is of the "
        "test data",
    )
    every.loc[0, "validation_accuracy_last10"] = nan
    summary = summarize(every, BY)
    assert list(summary.rows["is_best"]) == [True, False]
    assert summary.notes == (
        "best by last10 on test data: 1 of 4 finished runs have no validation accuracy",
    )


def test_a_target_has_no_validation_counterpart_and_says_so():
    found = {"validation_accuracy_last10": {("a", 0.1): [0.6], ("b", 0.1): [0.7]}}
    every = runs(("a", 0.1, 0.9), ("b", 0.1, 0.8), **found)
    every["rounds_to_0.7"] = [3.0, 4.0]
    summary = summarize(every, BY, ["rounds_to_0.7"])
    assert list(summary.rows["is_best"]) == [True, False]
    assert "best by rounds_to_0.7 itself, on test data" in summary.notes[0]
    del every["validation_accuracy_last10"]
    assert not summarize(every, BY, ["rounds_to_0.7"]).notes


def test_seeds_of_different_code_are_named():
    mixed = runs(
        ("a", 0.1, 0.9, 0.9), ("b", 0.1, 0.8, 0.8), code_digest={("a", 0.1): "xy", ("b", 0.1): "yy"}
    )
    assert summarize(mixed, BY).notes == (
        "seeds with different versions of the code or the data: a, partition.alpha=0.1",
    )


def test_rows_that_mix_rounds_say_so():
    longer = runs(("a", 0.1, 0.9, 0.9)).assign(
        **{"federation.rounds": [40, 60], "rounds": [40, 60]}
    )
    summary = summarize(longer, BY)
    assert list(summary.rows["rounds"]) == ["40-60"]
    assert summary.notes[0].endswith("federation.rounds")


def test_keys_and_values_in_latex():
    keys = ["algorithm.rho", "federation.lr", "algorithm.lam_2", "algorithm.alpha", "moon.alpha"]
    assert latex_headers(keys) == [
        *(r"$\rho$", r"$\eta$", r"lam\_2"),
        *("algorithm.alpha", "moon.alpha"),
    ]
    values = [0.123456, 1e-05, 2.5e-06, 1234567, None, True, "a_b"]
    texts = ["0.1235", "$10^{-5}$", r"$2.5 \cdot 10^{-6}$", "1234567", "--", "true", r"a\_b"]
    assert latex_values(values) == texts
    # Values that differ are never written alike.
    assert latex_values([0.123456, 0.123457]) == ["0.123456", "0.123457"]
