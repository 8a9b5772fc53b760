"""Points of a space: every combination, drawn values that stay, and axes that apply only sometimes."""

import pytest

from rayfl.config.layers import nested
from rayfl.errors import ConfigError
from tuning.space import Axis, applicable, check, dotted, points, task


def axes(**given):
    return {key.replace("__", "."): Axis.model_validate(axis) for key, axis in given.items()}


def test_a_grid_is_every_combination_in_the_order_of_the_file():
    space = axes(algorithm__rho={"grid": [0.1, 0.2]}, federation__lr={"range": [0.1, 0.3, 0.1]})
    found = list(points(space, None, 0))
    assert [tuple(p.values()) for p in found] == [
        (rho, lr) for rho in (0.1, 0.2) for lr in (0.1, 0.2, 0.3)
    ]
    assert 0.3 in {p["federation.lr"] for p in found}  # not 0.30000000000000004


def test_a_range_of_fractions_ends_in_a_fraction():
    (axis,) = axes(federation__cohort={"range": [0.5, 1.0, 0.25]}).values()
    assert [repr(value) for value in axis.values()] == ["0.5", "0.75", "1.0"]


def test_a_range_of_integers_is_integers():
    (axis,) = axes(a__b={"range": [2, 8, 3]}).values()
    assert axis.values() == (2, 5, 8)
    assert all(isinstance(value, int) for value in axis.values())


def test_conditional_axes_apply_where_they_should():
    space = axes(
        algorithm__alpha={"grid": [0.1, 0.2], "when": {"algorithm.name": "fedcm"}},
        algorithm__gamma={"grid": [0.5], "when": {"algorithm.name": ["fedacg", "fednsam"]}},
        algorithm__name={"grid": ["fedcm", "fedacg", "fedavg"]},
    )
    found = [{k: v for k, v in p.items()} for p in points(space, None, 0)]
    assert len(found) == 4
    assert {"algorithm.name": "fedavg"} in found
    assert {"algorithm.name": "fedacg", "algorithm.gamma": 0.5} in found
    assert applicable(space, {"algorithm.name": "fedavg", "algorithm.gamma": 0.5}) == {
        "algorithm.name": "fedavg"
    }


def test_draws_stay_when_samples_or_axes_are_added():
    rho = {"algorithm__rho": {"loguniform": [0.01, 1]}}
    few = [p["algorithm.rho"] for p in points(axes(**rho), 3, seed=1)]
    more = [p["algorithm.rho"] for p in points(axes(**rho), 5, seed=1)]
    wider = [
        p["algorithm.rho"]
        for p in points(axes(federation__lr={"uniform": [0, 1]}, **rho), 3, seed=1)
    ]
    assert more[:3] == few == wider
    assert len(set(more)) == 5
    assert few != [p["algorithm.rho"] for p in points(axes(**rho), 3, seed=2)]
    assert all(0.01 <= value <= 1 for value in more)


def test_every_draw_is_crossed_with_the_grid():
    space = axes(
        algorithm__rho={"uniform": [0, 1]},
        partition__alpha={"grid": [0.1, 1.0]},
        federation__local_steps={"integers": [1, 2]},
        algorithm__name={"choice": ["fedsam", "fedavg"]},
    )
    found = list(points(space, 20, 0))
    assert len(found) == 40
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first | {"partition.alpha": 1.0} == second
    assert {p["federation.local_steps"] for p in found} == {1, 2}
    assert {p["algorithm.name"] for p in found} == {"fedsam", "fedavg"}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"seed": {"grid": [1]}}, r"space.seed: .*use 'seeds: \[0, 1, 2\]'"),
        ({"ray.address": {"grid": ["auto"]}}, r"space.ray.address: changes no result"),
        (
            {"a.b": {"grid": [1], "when": {"a.d": 1}}, "a.c": {"grid": [1]}},
            r"space.a.b.when.a.d: must be another axis",
        ),
        (
            {"a": {"grid": [1], "when": {"b": 1}}, "b": {"grid": [1], "when": {"a": 1}}},
            r"space: the 'when' of a, b go in a circle",
        ),
    ],
)
def test_axes_that_cannot_be(space, message):
    with pytest.raises(ConfigError, match=message):
        check({key: Axis.model_validate(axis) for key, axis in space.items()})


def test_dotted_and_nested_keys_are_the_same():
    sections = {"algorithm": {"rho": {"grid": [1]}, "name": {"grid": ["fedcm"]}}}
    flat = {"algorithm.rho": {"grid": [1]}, "algorithm.name": {"grid": ["fedcm"]}}
    assert dotted(sections) == dotted(flat) == flat
    limited = {"algorithm.rho": {"when": {"algorithm.name": ["fedsam"]}}}
    assert dotted({"algorithm": {"rho": limited["algorithm.rho"]}}) == dotted(limited) == limited
    assert nested({"algorithm.name": "fedcm", "algorithm.rho": 1, "seed": 3}) == {
        "algorithm": {"name": "fedcm", "rho": 1},
        "seed": 3,
    }


def test_the_task_is_what_is_learned():
    assert task({"algorithm.rho": 1, "partition.alpha": 0.1}) == task(
        {"partition.alpha": 0.1, "federation.lr": 3}
    )
    assert task({"partition.alpha": 0.1}) != task({"partition.alpha": 1.0})
