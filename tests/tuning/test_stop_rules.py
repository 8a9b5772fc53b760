"""The rules of `stop`, over rounds that are done."""

import pytest

from tuning.config import Plateau, Stop
from tuning.stopping import reason

ROWS = {
    round: {"test/accuracy": accuracy, "time/round_s": 2.0}
    for round, accuracy in enumerate([0.1, 0.5, 0.5, 0.45, 0.5], start=1)
}


def until(round):
    return {r: row for r, row in ROWS.items() if r <= round}


@pytest.mark.parametrize(
    ("stop", "first", "words"),
    [
        (Stop(rounds=3), 3, "stop.rounds = 3"),
        (Stop(accuracy=0.5), 2, "test/accuracy 0.5000 reached stop.accuracy = 0.5"),
        (Stop(seconds=7), 4, "8.0 s of training passed stop.seconds = 7"),
        (Stop(plateau=Plateau(rounds=2)), 4, "no better test/accuracy than 0.5000 of round 2"),
        (Stop(plateau=Plateau(rounds=2, min_change=0.45)), 3, "than 0.1000 of round 1"),
    ],
)
def test_a_trial_ends_at_the_first_round_at_which_a_rule_holds(stop, first, words):
    ends = [r for r in ROWS if reason(stop, until(r), "test/accuracy", "max")]
    assert ends[0] == first
    assert words in reason(stop, until(first), "test/accuracy", "max")


def test_an_accuracy_is_that_of_what_is_held_out_where_something_is():
    rows = {1: {"test/accuracy": 0.9, "validation/accuracy": 0.4}}
    assert reason(Stop(accuracy=0.5), rows, "validation/accuracy", "max") is None
    rows[2] = {"test/accuracy": 0.3, "validation/accuracy": 0.6}
    words = "round 2: validation/accuracy 0.6000 reached stop.accuracy = 0.5"
    assert reason(Stop(accuracy=0.5), rows, "validation/accuracy", "max") == words


def test_no_rule_never_ends_it():
    assert reason(Stop(), ROWS, "test/accuracy", "max") is None
    assert reason(Stop(rounds=1), {}, "test/accuracy", "max") is None


def test_a_plateau_of_a_loss_is_that_it_does_not_fall():
    falling = {r: {"test/loss": 1 / r} for r in range(1, 9)}
    rising = {r: {"test/loss": float(r)} for r in range(1, 9)}
    stop = Stop(plateau=Plateau(rounds=4))
    assert reason(stop, falling, "test/loss", "min") is None
    assert "than 1.0000 of round 1" in reason(stop, rising, "test/loss", "min")
