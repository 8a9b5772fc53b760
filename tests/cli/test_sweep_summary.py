"""The best points of a sweep, and the numbers of its table."""

from rayfl.analysis.tables import table_of
from rayfl.cli.sweep_summary import best_points
from tuning.config import Sweep
from tuning.plan import PlannedTrial
from tuning.results import summary
from tuning.sweep import SweepResult, TrialResult

SPACE = {
    "partition.alpha": {"grid": [0.1, 0.6]},
    "algorithm.rho": {"grid": [0.01, 0.05, 0.1]},
}


def rows(alpha, rho, *trials):
    """One row per seed, from pairs of state and value."""
    point = {"partition.alpha": alpha, "algorithm.rho": rho}
    for seed, (state, value) in enumerate(trials):
        trial = PlannedTrial(point, seed, f"{point}{seed}", None)
        yield TrialResult(state, "", 3, value, "", None, "", ("", "", ""), 0, {}, trial, None)


def sweep(mode="max"):
    base = {"algorithm": {"name": "fedsam"}}
    content = {"name": "s", "base": base, "seeds": [0, 1], "space": SPACE, "mode": mode}
    return Sweep.model_validate(content)


RESULT = SweepResult(
    (
        *rows(0.1, 0.01, ("finished", 0.5), ("finished", 0.7)),
        *rows(0.1, 0.05, ("finished", 0.4), ("finished", 0.4)),
        *rows(0.1, 0.1, ("finished", 0.9), ("failed", 0.9)),
        *rows(0.6, 0.01, ("stopped_early", 0.99), ("stopped_early", 0.99)),
        *rows(0.6, 0.05, ("finished", 0.8), ("stopped_early", 0.1)),
        *rows(0.6, 0.1, ("infeasible", None), ("infeasible", None)),
    ),
    "parent",
)


def test_each_task_has_a_best_point_over_all_of_its_finished_seeds():
    assert best_points(RESULT, sweep()) == [
        {"partition.alpha": 0.1, "algorithm.rho": 0.01},
        {"partition.alpha": 0.6, "algorithm.rho": 0.05},
    ]
    assert best_points(RESULT, sweep("min"))[0]["algorithm.rho"] == 0.05
    nothing = SweepResult(tuple(row for row in RESULT.rows if row.state != "finished"), "parent")
    assert best_points(nothing, sweep()) == []


def test_the_table_averages_finished_trials_alone():
    found = summary(RESULT.rows, sweep())
    table = table_of(found)
    assert table.header == (
        *SPACE,
        *("test/accuracy", "n", "rounds", "stopped early", "failed", "infeasible"),
    )
    columns = list(zip(*table.rows, strict=True))
    assert columns[2] == ("0.6000 ± 0.1414", "0.4000 ± 0.0000", "0.9000", "–", "0.8000", "–")
    assert columns[3] == ("2", "2", "1", "0", "1", "0")
    assert columns[4] == ("3", "3", "3", "–", "3", "–")
    assert [sum(map(int, row[5:])) for row in table.rows] == [0, 0, 1, 2, 1, 2]
    assert table.best == (0, 4)
    assert found.notes == (
        "a better test/accuracy than the best, but of fewer seeds or a smaller share of the runs: "
        "partition.alpha=0.1, rho=0.1 (0.9000)",
        "fewer seeds than others: partition.alpha=0.1, rho=0.1 (1 of 2)",
    )
