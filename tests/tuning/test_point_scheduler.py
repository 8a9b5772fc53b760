"""Decisions on points: all seeds of a point, in the order of the points, whichever trial is first."""

import random
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from tuning.point_scheduler import PointScheduler, PointTrials
from tuning.schedulers import ASHA, Median

METRIC = "test/accuracy"
LAST = 20
ASHA_ = ASHA(grace_period=2, reduction_factor=2)  # rungs at 2, 4, 8 and 16
MEDIAN = Median(grace_period=4, every=4, min_samples=2)


class FakeTrial(SimpleNamespace):
    """A trial as a scheduler sees it: name, status, last result."""

    def __str__(self):
        return self.hash

    __hash__ = object.__hash__


class Tune:
    """Trials that run one report at a time, in a random order; at most `at_once` of them."""

    def __init__(self, scheduler, points, accuracy, seed=0, at_once=3, earlier=None):
        names = [f"p{i}" for i in range(points)]
        rounds = tuple(scheduler.rounds(LAST))
        self.points = [PointTrials(n, (f"{n}s0", f"{n}s1"), rounds) for n in names]
        self.earlier = earlier or {}
        inner = scheduler.build({}, METRIC, "max")
        self.scheduler = PointScheduler(inner, METRIC, self.points, self.earlier)
        self.rounds, self.accuracy, self.at_once = rounds, accuracy, at_once
        self.rng = random.Random(seed)
        self.trials = [
            FakeTrial(hash=h, status=Trial.PENDING, last_result={}, at=0, resumed=False)
            for point in self.points
            for h in point.hashes
            if h not in self.earlier
        ]
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)
        self.ends = {}

    def get_trials(self):
        return self.trials

    def pause_trial(self, trial, should_checkpoint):
        assert not should_checkpoint
        trial.status = Trial.PAUSED

    def stop_trial(self, trial):
        assert trial.status == Trial.PAUSED
        self.scheduler.on_trial_remove(self, trial)
        self._end(trial)

    def _end(self, trial):
        trial.status = Trial.TERMINATED
        self.ends[trial.hash] = trial.at

    def running(self):
        return [trial for trial in self.trials if trial.status == Trial.RUNNING]

    def report(self, trial):
        begin = 0 if trial.resumed else trial.at
        if not (
            trial.resumed and trial.at in self.rounds
        ):  # from such a checkpoint it reports at once
            trial.at = next((r for r in self.rounds if r > trial.at), LAST)
        trial.resumed = False
        rounds = range(begin + 1, trial.at + 1)
        records = [(r, {METRIC: self.accuracy(trial.hash, r)}) for r in rounds]
        result = {"rounds": trial.at, "records": records, METRIC: records[-1][1][METRIC]}
        trial.last_result = result
        if (
            trial.at == LAST
            or self.scheduler.on_trial_result(self, trial, result) == TrialScheduler.STOP
        ):
            self.scheduler.on_trial_complete(self, trial, result)
            self._end(trial)

    def run(self, reports=None):
        """Run to the end, or so many reports."""
        while len(self.ends) < len(self.trials) and reports != 0:
            while len(self.running()) < self.at_once:
                chosen = self.scheduler.choose_trial_to_run(self)
                if chosen is None:
                    break
                chosen.status = Trial.RUNNING
            if not self.running():
                assert len(self.ends) == len(self.trials), "all trials wait"
                break
            self.report(self.rng.choice(self.running()))
            reports = reports - 1 if reports is not None else None
        return self.ends


def noisy(hash, round):
    """Accuracies that cross: seeds of a point differ more than points."""
    quality = (0.2, 0.3, 0.1, 0.35, 0.05, 0.25, 0.15, 0.0)[int(hash[1])]
    return random.Random(f"{hash} {round}").random() * 0.3 + quality + round * 0.01


@pytest.mark.parametrize("scheduler", [ASHA_, MEDIAN])
def test_seeds_end_together_and_speed_changes_nothing(scheduler):
    found = [
        Tune(scheduler, 8, noisy, seed, at_once).run() for seed in range(10) for at_once in (2, 5)
    ]
    assert all(ends == found[0] for ends in found)
    of_points = [(found[0][f"p{i}s0"], found[0][f"p{i}s1"]) for i in range(8)]
    assert all(one == other for one, other in of_points)
    assert {*scheduler.rounds(LAST), LAST} >= {one for one, _ in of_points}
    assert any(one < LAST for one, _ in of_points)
    assert any(one == LAST for one, _ in of_points)


@pytest.mark.parametrize("scheduler", [ASHA_, MEDIAN])
@pytest.mark.parametrize("reports", [1, 5, 12, 20])
def test_a_sweep_that_is_started_again_decides_as_before(scheduler, reports):
    whole = Tune(scheduler, 8, noisy).run()
    first = Tune(scheduler, 8, noisy, seed=3)
    done = dict(first.run(reports))
    histories = {h: {r: noisy(h, r) for r in range(1, last + 1)} for h, last in done.items()}
    second = Tune(scheduler, 8, noisy, seed=4, earlier=histories)
    for trial in second.trials:
        trial.at = next(t.at for t in first.trials if t.hash == trial.hash)
        trial.resumed = trial.at > 0
    assert {**done, **second.run()} == whole


def test_the_mean_over_the_seeds_decides():
    """Two points: the one with the best seed has the worse mean."""

    def accuracy(hash, round):
        return {"p0s0": 0.5, "p0s1": 0.5, "p1s0": 0.9, "p1s1": 0.0}[hash]

    ends = Tune(ASHA_, 2, accuracy).run()
    assert ends == {"p0s0": LAST, "p0s1": LAST, "p1s0": 2, "p1s1": 2}


def test_a_seed_that_failed_is_not_waited_for():
    tune = Tune(ASHA_, 3, noisy)
    failed = tune.trials.pop(0)
    tune.scheduler.on_trial_error(tune, failed)
    assert tune.run().keys() == {trial.hash for trial in tune.trials}
