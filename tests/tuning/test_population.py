"""Populations: a sweep that is started again ends, and decides as it did before."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from tuning.schedulers import PBT
from tuning.space import Axis

METRIC, LR = "test/accuracy", "federation.lr"
LAST = 14
SPACE = {LR: Axis(uniform=(0.001, 1.0))}
SCHEDULER = PBT(mutate=(LR,), every=4, quantile=0.5)  # decides at rounds 4, 8 and 12


class FakeTrial(SimpleNamespace):
    """A trial as Ray Tune's scheduler sees it; `at` is its round, and `saved` its last checkpoint."""

    __hash__ = object.__hash__

    def is_finished(self):
        return self.status == Trial.TERMINATED

    def set_experiment_tag(self, tag):
        self.experiment_tag = tag

    def set_config(self, config):
        self.config = config


def new(name, at, lr):
    manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
    return FakeTrial(
        trial_id=name,
        at=at,
        awaits=at in SCHEDULER.rounds(LAST),
        config={LR: lr},
        status=Trial.PENDING,
        experiment_tag=name,
        checkpoint=None,
        temporary_state=SimpleNamespace(saving_to=None),
        run_metadata=SimpleNamespace(checkpoint_manager=manager),
    )


class Tune:
    """Trials that run one report at a time; at most two of them at once."""

    search_alg = None

    def __init__(self, checkpoints, decided=None, exploited=None):
        """`checkpoints`: round and learning rate by trial; `exploited`: round by trial."""
        reached = [at for at, _ in checkpoints.values()]
        self.exploited = exploited or {}
        if decided is None:
            decided = SCHEDULER.decided(LAST, reached, [], [*self.exploited.values()])
        self.scheduler = SCHEDULER.build(SPACE, METRIC, "max", "g", decided, self.on_exploit)
        self.trials = [new(name, at, lr) for name, (at, lr) in checkpoints.items()]
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)

    def on_exploit(self, trial, round):
        self.exploited[trial.trial_id] = round

    def get_trials(self):
        return self.trials

    def get_live_trials(self):
        return [trial for trial in self.trials if not trial.is_finished()]

    def pause_trial(self, trial, should_checkpoint):
        trial.status = Trial.PAUSED

    def _schedule_trial_save(self, trial, result):
        return "checkpoint"

    def running(self):
        return [trial for trial in self.trials if trial.status == Trial.RUNNING]

    def step(self):
        """Start what the scheduler chooses, then run the first trial to its next report."""
        while len(self.running()) < 2 and (chosen := self.scheduler.choose_trial_to_run(self)):
            chosen.status = Trial.RUNNING
        assert self.running(), "all trials wait"
        trial = self.running()[0]
        if not trial.awaits:
            trial.at = next((r for r in SCHEDULER.rounds(LAST) if r > trial.at), LAST)
        trial.awaits = False
        result = {"rounds": trial.at, METRIC: -abs(trial.config[LR] - 0.3)}
        if trial.at == LAST:
            trial.status = Trial.TERMINATED
            self.scheduler.on_trial_complete(self, trial, result)
        elif self.scheduler.on_trial_result(self, trial, result) == TrialScheduler.PAUSE:
            trial.status, trial.checkpoint = Trial.PAUSED, "checkpoint"

    def values(self):
        return {trial.trial_id: trial.config[LR] for trial in self.trials}

    def run(self, reports=100):
        """Run to the end, or so many reports; the learning rates."""
        while self.get_live_trials() and reports:
            self.step()
            reports -= 1
        return self.values()


BEGIN = {f"t{i}": (0, lr) for i, lr in enumerate((0.9, 0.25, 0.5, 0.002))}


@pytest.mark.parametrize("decisions", [0, 1, 2])
@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("gone_on", [0, 1, 3, 4])
def test_a_population_that_is_started_again_decides_as_before(gone_on, ahead, decisions):
    """After rounds of decision: some trials have gone on, the others are still there."""
    whole = Tune(BEGIN).run()
    assert whole != {name: lr for name, (_, lr) in BEGIN.items()}
    first = Tune(BEGIN)
    first.run(4 * decisions)
    at = 4 * decisions
    assert {trial.at for trial in first.trials} == {at}
    assert max(first.exploited.values(), default=0) == at
    checkpoints = {
        name: (at + ahead * (number < gone_on), lr)
        for number, (name, lr) in enumerate(first.values().items())
    }
    assert Tune(checkpoints, exploited=first.exploited).run() == whole


@pytest.mark.parametrize("met", [0, 1, 3, 4])
@pytest.mark.parametrize("decisions", [0, 1])
def test_whoever_is_at_a_round_of_decision_reports_there_first(decisions, met):
    """Before a decision: some trials have got to its round, the others to the one before it."""
    first = Tune(BEGIN)
    first.run(4 * decisions)
    at = 4 * (decisions + 1)
    checkpoints = {
        name: (at - (number >= met), lr) for number, (name, lr) in enumerate(first.values().items())
    }
    assert Tune(checkpoints).run() == Tune(BEGIN).run()


def test_without_the_round_of_the_last_decision_all_would_wait():
    """What Ray Tune does if trials first meet at its second round; this is why `decided` is there."""
    beyond = {name: (5, lr) for name, (_, lr) in BEGIN.items()}
    with pytest.raises(AssertionError, match="all trials wait"):
        Tune(beyond, decided=0).run()
    Tune(beyond).run()


def test_rounds_that_are_decided():
    assert SCHEDULER.decided(LAST, [0, 0], []) == 0
    assert SCHEDULER.decided(LAST, [4, 3], []) == 0  # the trial at 3 is awaited
    assert SCHEDULER.decided(LAST, [4, 5], []) == 4
    assert SCHEDULER.decided(LAST, [8, 8], []) == 4
    assert SCHEDULER.decided(LAST, [8, 8], [LAST]) == 8
    assert SCHEDULER.decided(LAST, [8, 8], [], [4, 8]) == 8
    assert SCHEDULER.decided(LAST, [13, 12], []) == 12
    assert SCHEDULER.decided(LAST, [0, 0], [LAST]) == 0  # new points, a population of their own
