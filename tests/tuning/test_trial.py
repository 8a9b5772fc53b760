"""Trials in one process: each equals `rayfl run`, whatever ran on the client actor before."""

from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from local_pool import undisturbed
from ray.util import placement_group, remove_placement_group

from rayfl.config.schema import load_config
from rayfl.inputs import data_key
from rayfl.prepare import prepare
from rayfl.runtime.placement import Placement
from rayfl.storage.checkpoint import saved_in
from rayfl.storage.storage import Storage
from rayfl.training.flat import sha256
from tuning.config import Stop, Sweep
from tuning.shared_inputs import SharedInputs
from tuning.trial import MUTATED, Execution, TrialSpec

IDENTITY = "0123456789abcdef"
SOME_MEMORIES = 10_000  # bytes; the others are in files


@pytest.fixture(scope="module")
def group(ray_session):
    made = placement_group([{"CPU": 0.1}])
    assert made.wait(20)
    yield made
    remove_placement_group(made)


@pytest.fixture
def execution(group):
    """Makes an `Execution` for these experiments."""
    made = []

    def make(*experiments, **sweep):
        data = {}
        for experiment in experiments:
            prepared = prepare(experiment)
            data[data_key(experiment)] = (ray.put(prepared.data), ray.put(prepared.partition))
        placement = Placement(actors=1, cpus=0, gpus=0, nodes=1)  # one bundle holds many
        space = {"algorithm.rho": {"grid": [0.1, 0.2]}}
        config = Sweep.model_validate({"name": "t", "base": {}, "space": space, **sweep})
        made.append(Execution(SharedInputs(data, placement, SOME_MEMORIES), config, group))
        return made[-1]

    yield make
    for execution in made:
        execution.close()


def job(experiment, checkpoints):
    return TrialSpec(
        experiment.model_dump(mode="json"), str(checkpoints), prepare(experiment).provenance
    )


def every(rounds):
    return {"name": "pbt", "mutate": ["algorithm.rho"], "every": rounds}


def ended(execution):
    """The records of all reports, and the last report."""
    records = []
    while True:
        report = execution.step()
        records += report["records"]
        if report.get("done"):
            return records, report


def without_times(records):
    return [(r, {k: v for k, v in m.items() if not k.startswith("time/")}) for r, m in records]


def test_trials_one_after_the_other_equal_runs_of_their_own(execution, small, tmp_path):
    """The client actor stays, and nothing of the first trial does."""
    small |= {"checkpoint": {"every": None}, "resources": {"num_actors": 1}}
    first = load_config(small)
    second = load_config(small, ["algorithm.name=scaffold", "partition.alpha=5", "seed=2"])
    trials = execution(first, second)
    pids, digests = [], []
    for experiment in (first, second):
        trials.begin(IDENTITY, job(experiment, tmp_path), {})
        records, report = ended(trials)
        assert report["rounds"] == 3
        assert {r for r, m in records if "train/loss" in m} == {1, 2, 3}
        digests.append(report["model_sha256"])
        pids.append(ray.get(trials.actors()[0].describe.remote())["pid"])
    assert pids[0] == pids[1]
    assert digests == [undisturbed(first), undisturbed(second)]


@pytest.mark.slow
def test_a_trial_goes_on_from_its_checkpoint(execution, small, tmp_path):
    """Another process goes on where one was stopped: same w, and records of every round once."""
    small["checkpoint"] = {"every": 2}
    small["federation"]["rounds"] = 5
    experiment = load_config(small)
    whole = execution(experiment)
    whole.begin(IDENTITY, job(experiment, tmp_path / "whole"), {})
    expected, undisturbed = ended(whole)
    stopped = execution(experiment, scheduler=every(4))
    stopped.begin(IDENTITY, job(experiment, tmp_path), {})
    assert stopped.step()["rounds"] == 4
    resumed = execution(experiment)
    resumed.begin(IDENTITY, job(experiment, tmp_path), {})
    assert resumed.session.server.round == 4
    records, report = ended(resumed)
    assert report["model_sha256"] == undisturbed["model_sha256"]
    rows = {(r, k): v for r, m in without_times(records) for k, v in m.items()}
    assert rows == {(r, k): v for r, m in without_times(expected) for k, v in m.items()}


@pytest.mark.slow
def test_an_exploit_is_the_donor_s_checkpoint_with_other_hyper_parameters(
    execution, small, tmp_path
):
    """Server state and client memories of the donor, then its own rho: as a server that is restored."""
    small["federation"]["rounds"] = 6
    experiment = load_config(small)
    trials = execution(experiment, scheduler=every(3))
    trials.begin(IDENTITY, job(experiment, tmp_path), {"algorithm.rho": 0.01})
    assert trials.step()["rounds"] == 3
    donor = trials.session.server.snapshot()
    donor_memories = {i: m.fetch() for i, m in donor.memories.items()}
    trials.save(str(tmp_path / "donor"))

    trials.begin("fedcba9876543210", job(experiment, tmp_path), {"algorithm.rho": 0.3})
    trials.step()  # something else, which the exploit takes the place of
    trials.load(str(tmp_path / "donor"))
    taken = trials.session.server.snapshot()
    for name, value in donor.tensors.items():
        assert np.array_equal(taken.tensors[name], value), name
    assert donor_memories.keys() == taken.memories.keys()
    for client, memory in donor_memories.items():
        assert np.array_equal(taken.memories[client].fetch()["c_i"], memory["c_i"])
    records, report = ended(trials)
    assert [r for r, m in records if "train/loss" in m] == [4, 5, 6]
    assert all(m[f"{MUTATED}algorithm.rho"] == 0.3 for r, m in records if "train/loss" in m)

    reference = execution(load_config(small, ["algorithm.rho=0.3"]))
    reference.begin(
        IDENTITY, job(load_config(small, ["algorithm.rho=0.3"]), tmp_path / "reference"), {}
    )
    server = reference.session.server
    server.restore(saved_in(Storage(str(tmp_path / "donor")))[-1].snapshot())
    for _ in server.run():
        pass
    assert sha256(torch.tensor(server.final().w)) == report["model_sha256"]


@pytest.mark.slow
def test_an_exploit_is_not_lost_if_the_sweep_is_killed(execution, small, tmp_path):
    """Before it has begun, and after its first checkpoint: the donor's memories, and this trial's rho."""
    small["federation"]["rounds"] = 6
    small["checkpoint"] = {"every": 1, "keep_last": 2}
    experiment = load_config(small)
    trials, spec, rho = (
        execution(experiment, scheduler=every(3)),
        job(experiment, tmp_path),
        {"algorithm.rho": 0.3},
    )
    trials.begin(IDENTITY, spec, {"algorithm.rho": 0.01})
    trials.step()
    trials.save(str(tmp_path / "donor"))
    for identity in ("a" * 16, "b" * 16):
        trials.begin(identity, spec, rho)
        assert trials.step()["rounds"] == 3
    trials.begin("a" * 16, spec, rho)
    trials.load(str(tmp_path / "donor"))
    expected = ended(trials)[1]["model_sha256"]

    trials.begin("b" * 16, replace(spec, taken_over=str(tmp_path / "donor")), rho)
    assert ended(trials)[1]["model_sha256"] == expected
    (folder,) = (tmp_path / ("a" * 16)).iterdir()
    first = saved_in(Storage(str(folder)))[0]
    assert first.round < 6
    first.make_newest()
    trials.begin("a" * 16, spec, rho)
    assert trials.session.server.round == first.round
    assert ended(trials)[1]["model_sha256"] == expected


@pytest.mark.slow
def test_reports_are_at_exact_rounds_with_their_evaluations(execution, small, tmp_path):
    small["federation"] |= {"rounds": 7, "eval_every": 3}
    experiment = load_config(small)
    trials = execution(experiment, scheduler=every(3))
    trials.begin(IDENTITY, job(experiment, tmp_path), {})
    reports = [trials.step() for _ in range(3)]
    assert [r["rounds"] for r in reports] == [3, 6, 7]
    for report in reports:
        evaluated = {r: m["test/accuracy"] for r, m in report["records"] if "test/accuracy" in m}
        assert evaluated == {report["rounds"]: report["test/accuracy"]}


@pytest.mark.slow
def test_a_stop_rule_ends_a_trial_at_the_first_round_that_has_it(execution, small, tmp_path):
    small["federation"]["rounds"] = 30
    experiment = load_config(small)
    trials = execution(experiment, stop=Stop(accuracy=0.3))
    trials.begin(IDENTITY, job(experiment, tmp_path), {})
    records, report = ended(trials)
    accuracies = {r: m["test/accuracy"] for r, m in records if "test/accuracy" in m}
    first = min(r for r, value in accuracies.items() if value >= 0.3)
    assert report["rounds"] == first == max(accuracies) < 30
    assert report["stopped"].startswith(f"round {first}: test/accuracy ")


@pytest.mark.slow
def test_a_metric_that_begins_with_the_second_round_may_be_the_sweep_s(execution, small, tmp_path):
    experiment = load_config(small)
    trials = execution(experiment, metric="update/cos_previous")
    trials.begin(IDENTITY, job(experiment, tmp_path), {})
    records, report = ended(trials)
    assert "failed" not in report
    found = {r: m["update/cos_previous"] for r, m in records if "update/cos_previous" in m}
    assert sorted(found) == [2, 3]
    assert report["update/cos_previous"] == found[3]


@pytest.mark.slow
def test_a_method_without_momentum_fails_alone_where_the_sweep_is_about_it(
    execution, small, tmp_path
):
    without = load_config(small, ["algorithm.name=fedavg"])
    trials = execution(without, metric="update/cos_momentum")
    trials.begin(IDENTITY, job(without, tmp_path), {})
    _, report = ended(trials)
    assert "no round has it" in report["failed"]
    assert not report["ends_sweep"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "sweep", "words"),
    [
        (
            ["algorithm.name=failing:Explodes", "federation.clip_norm=null"],
            {},
            "round 1, algorithm 'failing:Explodes': the loss",
        ),
        (["algorithm.name=failing:RaisesInRoundTwo"], {}, "ZeroDivisionError: momentum of nothing"),
        (
            [],
            {"metric": "test/acuracy"},
            "metric = 'test/acuracy': no round has it; there are client/",
        ),
    ],
)
def test_what_an_experiment_does_wrong_ends_its_trial_alone(
    execution, small, overrides, sweep, words, tmp_path
):
    bad, good = load_config(small, overrides), load_config(small)
    trials = execution(bad, good, **sweep)
    trials.begin(IDENTITY, job(bad, tmp_path), {})
    _, report = ended(trials)
    assert words in report["failed"]
    assert "Traceback" in report["traceback"]
    if not sweep:
        trials.begin(IDENTITY, job(good, tmp_path), {})
        assert ended(trials)[1]["rounds"] == 3
