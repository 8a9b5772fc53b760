import math

import pytest

from rayfl.federation.history import History


def row(**metrics: float) -> dict[str, float]:
    """A round's metrics, with `__` for `/`."""
    fixed = {"cost/backward_passes": 10.0, "cost/bytes_up": 100.0, "cost/bytes_down": 200.0}
    return fixed | {key.replace("__", "/"): value for key, value in metrics.items()}


def history(accuracies: dict[int, float], rounds: int) -> History:
    """A run of so many rounds; the evaluations come in last, the latest round's first."""
    run = History()
    for r in range(1, rounds + 1):
        run.add(r, row(train__loss=1 / r, time__round_s=0.1 * r))
    for r, accuracy in sorted(accuracies.items(), reverse=True):
        run.add(r, {"test/accuracy": accuracy, "test/loss": 1 - accuracy})
    return run


def test_frame_has_a_row_for_each_round_in_order():
    frame = history({2: 0.5, 4: 0.75}, rounds=4).frame()
    assert frame.index.name == "round"
    assert frame.index.tolist() == [1, 2, 3, 4]
    assert frame["train/loss"].tolist() == [1, 1 / 2, 1 / 3, 1 / 4]
    assert frame["test/accuracy"].dropna().to_dict() == {2: 0.5, 4: 0.75}
    assert math.isnan(frame["test/accuracy"][3])


def test_what_a_round_has_stays_as_it_is():
    """A server that went on from a checkpoint sends some rounds again."""
    run = History()
    run.add(3, {"a": 1.0, "b": 2.0})
    assert run.add(3, {"b": 5.0, "c": 3.0}) == {"c": 3.0}
    assert run.add(3, {"a": 5.0}) == {}
    assert dict(run.rows[3]) == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_frame_of_nothing():
    assert len(History().frame()) == 0


def test_summary():
    accuracies = {r: r / 20 for r in range(1, 16)} | {16: 0.6}
    summary = history(accuracies, rounds=16).summary(targets=[0.05, 0.5, 0.745, 0.9])
    assert summary == {
        "rounds": 16,
        "seconds_per_round": pytest.approx(0.1 * 17 / 2),
        "backward_passes": 160,
        "bytes_up": 1600,
        "bytes_down": 3200,
        "accuracy_final": 0.6,
        "accuracy_best": 0.75,
        "accuracy_last10": pytest.approx((sum(range(7, 16)) / 20 + 0.6) / 10),
        "accuracy_oscillation": pytest.approx((2 * 0.75 - 0.7 - 0.6) / 3 * math.sqrt(13) / 14),
        "accuracy_overshoot": pytest.approx(0.15),
        "loss_final": 0.4,
        "rounds_to_0.05": 1,
        "rounds_to_0.5": 10,
        "rounds_to_0.745": 15,
    }


def test_summary_of_a_run_that_was_cut_short():
    assert History().summary([0.5]) == {}
    unevaluated = history({}, rounds=2).summary([0.5])
    assert unevaluated["rounds"] == 2
    assert not [key for key in unevaluated if "accuracy" in key or "loss" in key or "to_" in key]


def test_what_was_held_out_has_a_summary_of_its_own():
    run = history({1: 0.7, 2: 0.6}, rounds=2)
    for r, accuracy in ((1, 0.5), (2, 0.4)):
        run.add(r, {"validation/accuracy": accuracy, "validation/loss": r})
    plain, summary = history({1: 0.7, 2: 0.6}, rounds=2).summary([0.55]), run.summary([0.55])
    assert {key: summary[key] for key in summary.keys() - plain.keys()} == {
        "validation_accuracy_final": 0.4,
        "validation_accuracy_best": 0.5,
        "validation_accuracy_last10": pytest.approx(0.45),
        "validation_accuracy_overshoot": pytest.approx(0.1),
        "validation_loss_final": 2,
    }
    assert plain == {key: summary[key] for key in plain}


def test_rounds_that_go_back_are_counted_among_those_that_tell():
    run = history({1: 0.5}, rounds=5)
    assert "echo_reversals" not in run.summary()
    for r, cosine in ((2, -0.5), (3, 0.5), (5, -0.1)):
        run.add(r, {"update/cos_previous": cosine})
    assert run.summary()["echo_reversals"] == pytest.approx(2 / 3)


def test_few_evaluations_are_all_of_the_last_ten():
    summary = history({3: 0.2, 6: 0.4}, rounds=7).summary()
    assert summary["accuracy_last10"] == pytest.approx(0.3)
    assert summary["accuracy_final"] == 0.4
