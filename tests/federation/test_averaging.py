"""Averages of the global model: their formulas, their accuracy, and that they change nothing."""

import numpy as np
import pytest
import torch
from conftest import each, small_config
from local_pool import a_server

import rayfl
from rayfl.algorithms import ALGORITHMS
from rayfl.config.schema import load_config
from rayfl.errors import CheckpointError, ConfigError
from rayfl.federation.averaging import Average, Rule
from rayfl.federation.metrics import EvaluationMetrics
from rayfl.models.mlp import MLP
from rayfl.prepare import prepare

MODELS = torch.tensor([[1.0, 10.0], [2.0, 0.0], [4.0, 2.0], [8.0, 4.0], [16.0, -6.0]])
RULES = {
    "last": Rule("last", window=3),
    "swa": Rule("swa", first=2, every=2),
    "ema": Rule("ema", decay=0.75),
}


@pytest.fixture(scope="module")
def ready():
    return prepare(load_config(small_config() | {"evaluation": {"average": {"last": 2}}}))


def after(rule: Rule, rounds: int) -> Average:
    average = Average(rule, torch.tensor([0.0]), torch.tensor([1.0]))
    for round in range(1, rounds + 1):
        w, buffers = MODELS[round - 1].split(1)
        average.add(round, w, buffers)
    return average


def value(average: Average) -> list[float] | None:
    model = average.model()
    return None if model is None else torch.cat(model).tolist()


def test_last_is_the_mean_of_a_window_and_of_fewer_before():
    assert value(after(RULES["last"], 0)) is None
    assert value(after(RULES["last"], 2)) == [1.5, 5.0]
    assert value(after(RULES["last"], 5)) == pytest.approx([28 / 3, 0.0])


def test_swa_is_the_mean_of_every_second_model_from_the_second_on():
    assert value(after(RULES["swa"], 1)) is None
    assert value(after(RULES["swa"], 3)) == [2.0, 0.0]
    assert value(after(RULES["swa"], 5)) == [5.0, 2.0]


def test_ema_begins_at_the_first_global_model():
    e = np.array([0.0, 1.0])
    for model in MODELS.numpy():
        e = 0.75 * e + 0.25 * model
    assert value(after(RULES["ema"], 5)) == pytest.approx(e.tolist())


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("stop", [1, 3])
def test_an_average_goes_on_from_what_was_kept(kind, stop):
    kept, resumed = after(RULES[kind], stop).arrays(), after(RULES[kind], 0)
    resumed.restore({name: array.copy() for name, array in kept.items()}, stop)
    for round in range(stop + 1, 6):
        resumed.add(round, *MODELS[round - 1].split(1))
    assert value(resumed) == value(after(RULES[kind], 5))


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ({}, RULES["ema"]),
        (after(RULES["ema"], 3).arrays(), RULES["swa"]),
        (after(Rule("last", window=2), 3).arrays(), RULES["last"]),
        (after(RULES["ema"], 3).arrays(), Rule("ema", decay=0.9)),
        (after(RULES["swa"], 3).arrays(), Rule("swa", first=2, every=1)),
    ],
    ids=["none", "another", "a smaller window", "another decay", "other rounds"],
)
def test_an_average_of_rounds_that_are_gone_is_refused(written, rule):
    with pytest.raises(
        CheckpointError, match=r"evaluation\.average: the checkpoint was written without"
    ):
        after(rule, 0).restore(written, 3)


def test_an_average_that_has_not_begun_needs_nothing():
    after(Rule("swa", first=4), 0).restore({}, 3)
    early, late = after(RULES["swa"], 3).arrays(), after(Rule("swa", first=4), 0)
    late.restore(early, 3)
    late.add(4, *MODELS[3].split(1))
    assert value(late) == MODELS[3].tolist()
    larger = after(RULES["last"], 3).arrays()
    smaller = after(Rule("last", window=1), 0)
    smaller.restore(larger, 3)
    assert value(smaller) == MODELS[2].tolist()


@pytest.mark.parametrize("average", [{"last": 2}, {"swa": 0.5, "every": 1}, {"ema": 0.5}])
def test_the_averages_accuracy_is_that_of_its_model_and_nothing_else_changes(average, small):
    """Of the plain model in the last round, evaluated here by plain torch."""
    small["data"]["validation"] = 0.1
    plain = rayfl.run(load_config(small), local=True)
    result = rayfl.run(load_config(small | {"evaluation": {"average": average}}), local=True)
    assert result.model_sha256 == plain.model_sha256
    assert plain.average_state_dict is None
    shared = [c for c in plain.history if not c.startswith("time/")]
    assert plain.history[shared].equals(result.history[shared])
    added = sorted(set(result.history) - set(plain.history))
    kinds = ("accuracy", "loss", "validation_accuracy", "validation_loss")
    assert added == [f"average/{kind}" for kind in kinds]
    ready = prepare(load_config(small))
    model = MLP(hidden=(16,)).build(ready.data.sample_shape, 10)
    for state, column in (
        (result.state_dict, "test/accuracy"),
        (result.average_state_dict, "average/accuracy"),
    ):
        model.load_state_dict(state)
        pixels = torch.tensor(ready.data.x_test).float() / 255
        inputs = (pixels - torch.tensor(ready.data.mean)) / torch.tensor(ready.data.std)
        hits = model(inputs.movedim(-1, 1)).argmax(1) == torch.tensor(ready.data.y_test)
        assert result.history[column].iloc[-1] == pytest.approx(hits.float().mean().item())


def test_the_last_model_alone_is_the_model_itself(small):
    server = a_server(prepare(load_config(small | {"evaluation": {"average": {"last": 1}}})))
    evaluated = [m.values for m in server.run() if isinstance(m, EvaluationMetrics)]
    assert len(evaluated) == 3
    for values in evaluated:
        assert values["average/loss"] == values["test/loss"]
    assert np.array_equal(server.final().average[0], server.final().w)


@pytest.mark.slow
@each(name=ALGORITHMS.keys())
def test_every_methods_global_models_are_averaged(name, ready):
    server, models = a_server(ready, ALGORITHMS[name]()), []
    for round in (1, 2, 3):
        list(server.run(until=round))
        models.append(server.w.clone())
    assert torch.equal(torch.tensor(server.final().average[0]), (models[1] + models[2]) / 2)


def test_a_resumed_run_has_the_averages_of_one_that_never_stopped(small, tmp_path):
    small |= {"evaluation": {"average": {"last": 3}}}
    small["checkpoint"] = {"dir": str(tmp_path), "every": 2, "keep_last": 2}
    whole = rayfl.run(load_config(small), local=True)
    (newest,) = tmp_path.glob("*/*/checkpoint-00000003.json")
    newest.unlink()
    resumed = rayfl.run(load_config(small), local=True, resume="latest")
    columns = ["average/accuracy", "average/loss"]
    assert resumed.history[columns].equals(whole.history[columns])
    newest.unlink()
    other = small | {"evaluation": {"average": {"last": 4}}}
    rayfl.run(load_config(other), local=True, resume="latest")  # all of them are there
    newest.unlink()
    with pytest.raises(
        ConfigError, match=r"evaluation\.average: the checkpoint was written without"
    ):
        rayfl.run(
            load_config(small | {"evaluation": {"average": {"ema": 0.9}}}),
            local=True,
            resume="latest",
        )


@pytest.mark.parametrize(
    "given",
    [
        "{}",
        "{last: 2, ema: 0.5}",
        "{last: 0}",
        "{ema: 1}",
        "{swa: 1.0}",
        "{every: 2}",
        "{ema: 0.9, every: 5}",
        "{swa: 4}",
    ],
)
def test_what_is_no_average_is_one_line(given, small):
    with pytest.raises(ConfigError, match=r"^evaluation\.average[^\n]*$"):
        load_config(small, [f"evaluation.average={given}"])


def test_one_average_takes_the_place_of_another(small):
    config = load_config(small | {"evaluation": {"average": {"swa": 2, "every": 2}}})
    other = load_config(config.model_dump(mode="json"), ["evaluation.average.last=10"])
    assert other.evaluation.average.rule(3) == Rule("last", window=10)


def test_a_share_of_the_rounds_is_a_round(small):
    small["federation"]["rounds"] = 40
    config = load_config(small, ["evaluation.average.swa=0.75", "evaluation.average.every=5"])
    assert config.evaluation.average.rule(40) == Rule("swa", first=30, every=5)
    assert config.hash == load_config(small).hash
