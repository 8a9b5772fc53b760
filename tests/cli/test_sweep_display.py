"""Display of a sweep on terminals of different sizes, and its estimate of the time that is left."""

import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from rayfl.cli.sweep_display import SweepDisplay
from rayfl.cli.sweep_plan import describe
from rayfl.inputs import Inputs
from rayfl.runtime.placement import Placement
from tuning.callbacks import TrialUpdate
from tuning.config import Sweep, load_sweep
from tuning.plan import PlannedTrial, SweepPlan

SPACE = {"algorithm.rho": {"grid": [0.05, 0.1]}, "partition.alpha": {"grid": [0.1, 1.0]}}
MANY = {"algorithm.rho": {"grid": [i / 100 for i in range(1, 41)]}}


@pytest.fixture
def clock(monkeypatch):
    """Time in seconds that the display reads, in a list of one; tests change it."""
    now = [1000.0]
    for module in ("terminal", "sweep_progress"):
        fake = SimpleNamespace(monotonic=lambda: now[0])
        monkeypatch.setattr(f"rayfl.cli.{module}.time", fake)
    return now


def planned(small, space=SPACE, **changes):
    sweep = Sweep.model_validate({"name": "t", "base": small, "space": space, "seeds": (0,)})
    points = list(sweep.search.points(sweep.space))
    experiments = [sweep.experiment(point, 0) for point in points]
    trials = tuple(PlannedTrial(p, 0, e.hash, e) for p, e in zip(points, experiments, strict=True))
    placement = Placement(actors=1, cpus=1, gpus=0, nodes=1)
    plan = SweepPlan(sweep, trials, len(trials), Inputs(), placement, room=2, maximum=None)
    return replace(plan, **changes)


def begun(plan, width, height):
    """Return the display of a sweep that has started, and a function that draws it."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None
    )
    progress = SweepDisplay(console)
    progress.start(SimpleNamespace(plan=plan, ended=0, parent_id="p", ui_command="u", page="p"))

    def lines():
        with console.capture() as captured:
            console.print(progress)
        return captured.get().rstrip("\n").splitlines()

    return progress, lines


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (40, 10)])
def test_the_table_fits_the_terminal(small, clock, width, height):
    plan = planned(small, MANY)
    progress, lines = begun(plan, width, height)
    assert lines()[0].startswith("0 of 40 trials done, starting the actor")
    for trial in plan.trials[:30]:
        progress.update(TrialUpdate(trial, "running", 2, 0.5))
    clock[0] += 36_000
    drawn = lines()
    assert len(drawn) < height
    assert all(len(line) <= width for line in drawn)
    shown = sum("2/3" in line for line in drawn)
    assert drawn[-1].strip() == f"and {30 - shown} more"
    assert re.match(r"rho=0\.0\d seed=0 +2/3 +0.5000$", drawn[3])


def test_the_table_says_what_there_is(small, clock):
    plan = planned(small)
    progress, lines = begun(plan, 100, 40)
    first, second, third, fourth = plan.trials
    for trial in (first, second):
        progress.update(TrialUpdate(trial, "running", 0))
    assert lines()[0] == "0 of 4 trials done, 2 running"
    clock[0] += 60  # while the actors start
    progress.update(TrialUpdate(first, "running", 1, 0.25))
    assert lines()[0] == "0 of 4 trials done, 2 running"
    clock[0] += 30
    progress.update(TrialUpdate(second, "running", 1, 0.5))
    progress.update(TrialUpdate(third, "infeasible", 0, None, "a reason"))
    progress.update(TrialUpdate(first, "finished", 3, 0.375))
    progress.update(TrialUpdate(fourth, "running", 0))
    # A whole trial took 30 s; left are two thirds of one, and another.
    line, best, *rows = lines()
    assert line == "2 of 4 trials done (1 finished, 1 infeasible), 2 running, 50 s left"
    # A running trial is none yet, even if its value is better.
    assert best == "best test/accuracy 0.3750 (n=1): rho=0.05, partition.alpha=0.1"
    assert [row.split() for row in rows] == [
        ["trial", "round", "test/accuracy"],
        ["rho=0.05", "partition.alpha=1.0", "seed=0", "1/3", "0.5000"],
        ["rho=0.1", "partition.alpha=1.0", "seed=0", "0/3"],
    ]
    progress.say("stopping")
    assert lines()[0].endswith("2 running, stopping")


def test_the_time_left_counts_what_this_command_ran(small, clock):
    """Two trials are done from before, one goes on after two of its three rounds."""
    plan = planned(small)
    progress, lines = begun(plan, 100, 40)
    for trial in plan.trials[:2]:
        progress.update(TrialUpdate(trial, "finished", 3, 0.5))
    resumed, fresh = plan.trials[2:]
    progress.update(TrialUpdate(resumed, "running", 0))
    progress.update(TrialUpdate(resumed, "running", 2, None, "goes on after round 2"))
    assert lines()[0] == "2 of 4 trials done (2 finished), 1 running"  # nothing to judge by yet
    progress.update(TrialUpdate(resumed, "finished", 3, 0.5))
    progress.update(TrialUpdate(fresh, "running", 0))
    progress.update(TrialUpdate(fresh, "running", 1, 0.5))
    clock[0] += 10
    progress.update(TrialUpdate(fresh, "running", 2, 0.5))
    assert lines()[0] == "3 of 4 trials done (3 finished), 1 running, 10 s left"


def test_what_failed_is_said_at_once(small, clock):
    plan = planned(small)
    console = Console(file=io.StringIO(), width=200)
    progress = SweepDisplay(console)
    progress.start(SimpleNamespace(plan=plan, ended=0, parent_id="p", ui_command="u", page="p"))
    with console.capture() as captured:
        progress.update(TrialUpdate(plan.trials[0], "running", 0))
        for _ in range(2):
            progress.update(TrialUpdate(plan.trials[0], "failed", 1, None, "round 2: [not] finite"))
    assert captured.get() == (
        f"failed: {plan.trials[0].hash} (algorithm.rho=0.05 partition.alpha=0.1 seed=0): "
        "round 2: [not] finite\n"
    )


@pytest.mark.parametrize("storage", [None, "/home/me/sweeps/t"])
def test_a_plan_says_what_must_be_shared(small, storage):
    text = describe(planned(small, unshared_storage=storage))
    assert ("storage = '/home/me/sweeps/t': pbt copies trials from node to node" in text) == bool(
        storage
    )


@pytest.mark.parametrize(
    ("validation", "metric", "words"),
    [
        (
            None,
            None,
            "chosen by test/accuracy, which then flatters the best; base.data.validation=0.1 ",
        ),
        (
            None,
            "client/accuracy_mean",
            "chosen by client/accuracy_mean, which then flatters the best",
        ),
        (
            0.1,
            "test/accuracy",
            "flatters the best; metric=validation/accuracy chooses by the samples",
        ),
        (0.1, None, None),
        (None, "train/loss", None),
    ],
)
def test_a_plan_says_where_points_are_chosen_on_the_test_set(
    small, tmp_path, validation, metric, words
):
    small["data"]["validation"] = validation
    given = {"metric": metric} if metric else {}
    (tmp_path / "t.yaml").write_text(json.dumps({"base": small, "space": SPACE, **given}))
    said = describe(planned(small, sweep=load_sweep(tmp_path / "t.yaml")))
    assert ("flatters" in said) == (words is not None)
    assert words is None or words in said
    (only,) = planned(small, {"algorithm.rho": {"grid": [0.1]}}).trials
    assert "flatters" not in describe(replace(planned(small), trials=(only,), count=1))


def test_a_reason_is_told_once(small):
    plan = planned(small, MANY)
    problems = ["a [reason]"] * 12 + ["another"]
    trials = [replace(t, problem=p) for t, p in zip(plan.trials, problems, strict=False)]
    lines = describe(replace(plan, trials=(*trials, *plan.trials[13:]))).splitlines()
    start = lines.index("13 trials cannot run:")
    first = [f"    {trial.settings}" for trial in trials[:10]]
    assert lines[start + 1 :] == [
        *("  a [reason]", *first, "    and 2 more"),
        *("  another", f"    {trials[12].settings}"),
    ]
