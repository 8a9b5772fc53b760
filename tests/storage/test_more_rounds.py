"""A run goes on from one of fewer rounds: the bits, the history and the identity of a run from the start."""

import pytest
from mlflow.tracking import MlflowClient

from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.experiment import run
from rayfl.storage.checkpoint import newest_in
from rayfl.storage.storage import Storage
from rayfl.tracking.defaults import default_uri

STATEFUL = {"algorithm": {"name": "scaffold"}, "checkpoint": {}}


@pytest.fixture
def config(small, tmp_path, monkeypatch):
    """Load the small experiment with a stateful method, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def load(rounds, *overrides):
        return load_config(small | STATEFUL, [f"federation.rounds={rounds}", *overrides])

    return load


def go_on(config, which="latest"):
    started = []
    result = run(config, started.append, resume=which, local=True)
    return result, started[0].resumed_round


def same(result, whole):
    assert result.model_sha256 == whole.model_sha256
    timeless = [name for name in whole.history if not name.startswith("time/")]
    assert result.history[timeless].equals(whole.history[timeless])


@pytest.mark.slow
def test_more_rounds_give_what_they_would_have_given_from_the_start(config, store_here):
    recorded = "tracking.enabled=true"
    whole = run(config(5, "checkpoint.dir=elsewhere"), local=True)
    first = run(config(2, recorded), local=True)
    result, begun = go_on(config(5, recorded))
    assert begun == 2
    same(result, whole)
    client = MlflowClient(default_uri())
    before, after = (client.get_run(found.run_id) for found in (first, result))
    assert (before.info.status, before.data.metrics["rounds"]) == ("FINISHED", 2)
    assert (after.info.status, after.data.metrics["rounds"]) == ("FINISHED", 5)
    assert after.data.params["federation.rounds"] == "5"
    assert after.data.tags["rayfl.continues"] == first.run_id
    assert after.data.tags["rayfl.config_hash"] == config(5).hash
    losses = client.get_metric_history(result.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == [*whole.history["train/loss"].items()]
    newest = newest_in(Storage(f"checkpoints/{config(5).hash}/{result.run_id}"))
    assert (newest.round, newest.run_id) == (5, result.run_id)
    # From its own checkpoint now, in its own MLflow run.
    again, begun = go_on(config(5, recorded))
    assert (begun, again.run_id) == (5, result.run_id)


def test_it_goes_on_from_a_run_that_was_stopped_and_from_the_longest(config):
    whole = run(config(5, "checkpoint.dir=elsewhere"), local=True)
    run(config(1), local=True)

    def stop(metrics):
        if metrics.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(4, "checkpoint.every=1"), local=True, on_metrics=stop)
    run(config(2), local=True)
    result, begun = go_on(config(5))
    assert begun == 3
    same(result, whole)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            ["federation.lr_schedule=cosine"],
            ["federation.lr_schedule=cosine"],
            r"lr_schedule = 'cosine': its learning rates depend on federation\.rounds: the 2 rounds .* of 2 ",
        ),
        (
            ["evaluation.average.swa=0.5"],
            ["evaluation.average.swa=0.5"],
            r"average\.swa = 0\.5: is a share of .* round 1, not 2; give evaluation\.average\.swa=1, or",
        ),
        (
            [],
            ["algorithm.server_lr=0.5"],
            "no checkpoint of this config .* smaller federation.rounds",
        ),
        ([], ["checkpoint.every=null"], "checkpoint.every = null: --resume: a run that goes on"),
    ],
    ids=["learning rates", "average", "another config", "no checkpoints"],
)
def test_other_first_rounds_are_refused(before, after, message, config):
    run(config(2, *before), local=True)
    with pytest.raises(ConfigError, match=message):
        go_on(config(4, *after))


def test_the_round_of_an_average_may_be_given_and_fewer_rounds_are_another_config(config):
    run(config(2, "evaluation.average.swa=0.5"), local=True)
    given = "evaluation.average.swa=1"
    result, begun = go_on(config(4, given))
    assert begun == 2
    same(result, run(config(4, given, "checkpoint.dir=elsewhere"), local=True))
    with pytest.raises(ConfigError, match=r"federation\.rounds = 4 there, 3 here"):
        go_on(config(3), folder_of(config(4)))


def folder_of(config):
    (run,) = Storage(f"checkpoints/{config.hash}").folders()
    return f"checkpoints/{config.hash}/{run}"


def test_what_the_last_round_alone_was_measured_for_is_no_part_of_a_longer_run(config):
    """Round 2 is evaluated in the shorter run, and in no longer one."""
    rare = ("federation.eval_every=3", "evaluation.personalised.steps=0")
    whole = run(config(5, *rare, "checkpoint.dir=elsewhere"), local=True)
    first = run(config(2, *rare), local=True)
    assert first.history["test/accuracy"].notna()[2]
    result, _ = go_on(config(5, *rare))
    same(result, whole)
    assert result.history["test/accuracy"].isna()[2]
    assert result.history["personal/accuracy_mean"].notna().tolist() == [False] * 4 + [True]
