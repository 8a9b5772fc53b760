"""The flatness of finished runs: measured once, the same wherever, and refused in one line."""

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch.func import functional_call
from torch.nn import functional as F

from rayfl.config.schema import load_config
from rayfl.diagnostics import Question, flatness, interpolate, measuring
from rayfl.diagnostics.subjects import find
from rayfl.errors import ConfigError
from rayfl.experiment import run
from rayfl.flatness.measures import Effort
from rayfl.prepare import prepare
from rayfl.tracking.defaults import default_uri
from rayfl.training.flat import Layout

QUICK = Question(
    effort=Effort(rhos=(0.05,), scale_free_rhos=(0.5,), draws=3, lanczos_steps=12, grid=7)
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, empty_store, request):
    """A finished run with two checkpoints in a store of its own: its config and result."""
    from conftest import small_config

    folder = tmp_path_factory.mktemp("finished")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    config = small_config() | {
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "checkpoint": {"every": 2, "dir": str(folder / "checkpoints"), "keep_last": 5},
    }
    experiment = load_config(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where MLflow puts artifacts
        return experiment, run(experiment, local=True), folder


def numbers(report):
    keys = ["round", "split", "metric"]
    return report.frame.set_index(keys)["value"].sort_index()


@pytest.mark.slow
def test_the_numbers_are_those_of_the_final_model(finished):
    """Loss, gradient and largest eigenvalue against PyTorch's dense Hessian of the returned state_dict."""
    experiment, result, _ = finished
    report = flatness(result.run_id, question=QUICK, uri=experiment.tracking.uri, local=True)
    prepared = prepare(experiment)
    model = prepared.model.double()
    model.load_state_dict(result.state_dict)
    data = prepared.data
    x = torch.from_numpy(data.x_test / 255 if data.x_test.dtype == np.uint8 else data.x_test)
    std, mean = (torch.from_numpy(np.asarray(v)).double() for v in (data.std, data.mean))
    x = ((x.double() - mean) / std).permute(0, 3, 1, 2)
    y = torch.from_numpy(data.y_test)
    layout = Layout(model)
    w = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(w):
        named = {info.name: info.view(w) for info in layout.parameters}
        return F.cross_entropy(functional_call(model, named, (x,)), y)

    found = numbers(report).xs((3, "test"))
    assert found["loss"] == pytest.approx(float(loss(w)), rel=1e-5)
    gradient = torch.func.grad(loss)(w)
    assert found["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    gap = loss(w + 0.05 * gradient / gradient.norm()) - loss(w)
    assert found["gap_0.05"] == pytest.approx(float(gap), rel=1e-3)
    largest = float(torch.linalg.eigvalsh(torch.func.hessian(loss)(w))[-1])
    assert found["lambda1"] == pytest.approx(largest, rel=1e-3)
    assert found["lambda1"] >= found["lambda2"] >= found["lambda3"]


def test_what_was_measured_is_in_mlflow_and_not_measured_again(finished):
    experiment, result, _ = finished
    uri = experiment.tracking.uri
    first = flatness("latest", question=QUICK, uri=uri, local=True)
    started = []
    again = flatness(
        "latest", question=QUICK, uri=uri, local=True, on_start=lambda *_: started.append(1)
    )
    assert not started
    assert again.seconds == 0
    pd.testing.assert_series_equal(numbers(again), numbers(first))
    client = MlflowClient(uri)
    (entry,) = client.get_metric_history(result.run_id, "flatness/lambda1")
    assert (entry.step, entry.value) == (3, numbers(first)[3, "train", "lambda1"])
    assert client.get_run(result.run_id).info.status == "FINISHED"
    more = Question(samples=100, effort=QUICK.effort, measures=("gap",))
    flatness("latest", question=more, uri=uri, local=True, on_start=lambda *_: started.append(1))
    assert started


@pytest.mark.slow
def test_any_number_of_actors_gives_the_same_bits(finished, ray_session):
    """Without MLflow nothing is known before: each of these is computed."""
    experiment, _, folder = finished
    place = next((folder / "checkpoints" / experiment.hash).iterdir())
    effort = Effort(rhos=(0.05,), scale_free_rhos=(0.5,), draws=2, lanczos_steps=5)
    question = Question(samples=1200, effort=effort, splits=("train",))
    reports = [
        flatness(str(place), overrides, question=question, local=local)
        for local, overrides in (
            (True, []),
            (False, ["resources.num_actors=1", "ray.address=auto"]),
            (False, ["resources.num_actors=3", "ray.address=auto"]),
        )
    ]
    for other in reports[1:]:
        assert other.seconds > 0
        pd.testing.assert_series_equal(numbers(other), numbers(reports[0]), check_exact=True)


def test_rounds_with_a_checkpoint_can_be_chosen(finished):
    experiment, result, _ = finished
    question = Question(effort=QUICK.effort, measures=("gap",), splits=("test",))
    ask = dict(question=question, uri=experiment.tracking.uri, local=True)
    report = flatness(result.run_id, rounds=(2, "last"), **ask)
    assert sorted(set(report.frame["round"])) == [2, 3]
    by_round = result.history["test/loss"]
    for round in (2, 3):
        loss = numbers(report)[round, "test", "loss"]
        assert loss == pytest.approx(by_round[round], rel=1e-5)
    with pytest.raises(ConfigError, match=r"--rounds = 1: .* has the checkpoints of rounds 2, 3"):
        flatness(result.run_id, rounds=(1,), **ask)


def test_another_experiment_is_refused(finished):
    experiment, result, _ = finished
    with pytest.raises(ConfigError, match="it is another experiment"):
        flatness(result.run_id, ["federation.lr=0.3"], uri=experiment.tracking.uri, local=True)


def test_an_unknown_run_is_refused(finished):
    experiment, *_ = finished
    for unknown in ("nobody", "00000000"):
        with pytest.raises(ConfigError, match=f"'{unknown}': is no run in"):
            flatness(unknown, uri=experiment.tracking.uri, local=True)


def test_the_beginning_of_an_id_names_the_only_run_that_has_it(finished, store_here):
    experiment, result, _ = finished
    found = find(result.run_id[:8], ["last"], uri=experiment.tracking.uri)
    assert found.records is not None
    assert found.records.run_id == result.run_id
    client = MlflowClient(uri := default_uri())
    tags = {"rayfl.kind": "experiment"}
    ids = [client.create_run("0", tags=tags).info.run_id for _ in range(17)]
    first = next(one for one in "0123456789abcdef" if sum(i[0] == one for i in ids) > 1)
    with pytest.raises(ConfigError, match=f"'{first}': several runs in .* begin so: {first}"):
        find(first, ["last"], uri=uri)


@pytest.mark.slow
def test_a_landscape_has_the_loss_of_w_in_its_middle(finished):
    experiment, result, _ = finished
    effort = Effort(rhos=(0.05,), scale_free_rhos=(0.5,), draws=2, lanczos_steps=5, grid=5)
    question = Question(effort=effort, measures=("gap", "landscape"), splits=("train",), clients=3)
    report = flatness(result.run_id, question=question, uri=experiment.tracking.uri, local=True)
    planes = report.landscapes[3]
    assert set(planes) == {"random", "clients"}
    loss = numbers(report)[3, "train", "loss"]
    for plane in planes.values():
        assert plane["losses"][2][2] == pytest.approx(loss, rel=1e-5)
        assert np.shape(plane["points"]) == (3, 2)
    extent = planes["clients"]["x"][-1]
    reached = np.linalg.norm(planes["clients"]["points"], axis=1)
    assert 0 < reached.max() < extent


@pytest.mark.slow
def test_the_mean_of_the_last_checkpoints_is_measured_beside_them(finished):
    """Against the plain measures at a checkpoint whose w is that mean."""
    from rayfl.diagnostics.subjects import find

    experiment, result, _ = finished
    question = Question(effort=QUICK.effort, measures=("gap",), splits=("test",), average=2)
    ask = dict(uri=experiment.tracking.uri, local=True)
    report = flatness(result.run_id, question=question, **ask)
    saved = find(result.run_id, ["last"], uri=experiment.tracking.uri, average=2).checkpoints
    assert [one.round for one in saved] == [2, 3]
    mean = np.mean([one.snapshot().tensors["w"] for one in saved], axis=0)
    prepared = prepare(experiment)
    model, layout = prepared.model.double(), Layout(prepared.model)
    named = {info.name: info.view(torch.from_numpy(mean).double()) for info in layout.parameters}
    x, y = prepared.data.x_test, torch.from_numpy(prepared.data.y_test)
    x = torch.from_numpy(x / 255 if x.dtype == np.uint8 else x).double()
    x = ((x - torch.as_tensor(prepared.data.mean)) / torch.as_tensor(prepared.data.std)).permute(
        0, 3, 1, 2
    )
    loss = F.cross_entropy(functional_call(model, named, (x,)), y)
    assert numbers(report)[3, "test", "loss"] == pytest.approx(float(loss), rel=1e-5)
    metrics = MlflowClient(experiment.tracking.uri).get_run(result.run_id).data.metrics
    assert metrics["flatness/average/last2/test/loss"] == numbers(report)[3, "test", "loss"]
    for wrong, message in (
        (Question(measures=("gap",), average=3), "--average = last3: .* has 2 checkpoints"),
        (Question(measures=("gap", "variance"), average=2), "variance cannot be measured there"),
    ):
        with pytest.raises(ConfigError, match=message):
            flatness(result.run_id, question=wrong, **ask)


def test_a_line_between_two_runs_ends_at_their_losses(finished, tmp_path):
    experiment, result, folder = finished
    place = next((folder / "checkpoints" / experiment.hash).iterdir())
    earlier = str(place / "checkpoint-00000002.json")
    ask = dict(uri=experiment.tracking.uri, local=True)
    line = interpolate(result.run_id, earlier, **ask)
    at = line.frame.set_index("position")["test"]
    assert at[0.0] == pytest.approx(result.history["test/loss"][3], rel=1e-5)
    assert at[1.0] == pytest.approx(result.history["test/loss"][2], rel=1e-5)
    inside = at[(at.index >= 0) & (at.index <= 1)]
    above = inside - (at[0.0] * (1 - inside.index) + at[1.0] * inside.index)
    assert line.barriers["test"] == pytest.approx(above.max())
    started = []
    again = interpolate(result.run_id, earlier, on_start=lambda *_: started.append(1), **ask)
    pd.testing.assert_frame_equal(again.frame, line.frame)
    assert not started


def test_a_line_needs_one_model(finished, tmp_path, monkeypatch):
    experiment, result, _ = finished
    monkeypatch.chdir(tmp_path)
    other = load_config(
        experiment.model_dump(mode="json"),
        ["model.hidden=[8]", "federation.rounds=1", f"checkpoint.dir={tmp_path}/other"],
    )
    found = run(other, local=True)
    with pytest.raises(ConfigError, match=r"--towards = .*: has the model .*\[8\].*\[16\]"):
        interpolate(result.run_id, found.run_id, uri=experiment.tracking.uri, local=True)


@pytest.mark.parametrize(
    ("given", "limit", "here"),
    [
        ([], 20.0, True),
        pytest.param([], 0.0, False, marks=pytest.mark.slow),
        pytest.param(["ray.address=auto"], 20.0, False, marks=pytest.mark.slow),
    ],
    ids=["few seconds", "many seconds", "a cluster"],
)
def test_few_seconds_of_work_start_no_ray(finished, monkeypatch, ray_session, given, limit, here):
    monkeypatch.setattr(measuring, "FEW_SECONDS", limit)
    experiment, _, folder = finished
    place, placements = next((folder / "checkpoints" / experiment.hash).iterdir()), []
    flatness(
        str(place),
        ["tracking.enabled=false", *given],
        question=Question(samples=50, measures=("gap",), splits=("train",), effort=QUICK.effort),
        on_start=lambda subject, placement: placements.append(str(placement)),
    )
    assert ("without Ray" in placements[0]) == here
