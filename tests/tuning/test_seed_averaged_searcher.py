"""A search over seeds: every point with every seed, and the same points when it is started again."""

import random

import pytest

from tuning.plan import PlannedTrial
from tuning.searchers import Optuna
from tuning.seed_averaged_searcher import SeedAveragedSearcher
from tuning.space import Axis

pytest.importorskip("optuna")
SAMPLES = 16  # Optuna draws the first ten at random
SPACE = {"algorithm.rho": Axis(uniform=(0.0, 1.0)), "federation.lr": Axis(loguniform=(0.01, 1.0))}


class Search:
    """A search whose trials end in a random order, at most `at_once` of them at a time."""

    def __init__(self, seeds, known, told, order=0, at_once=3):
        self.known, self.told, self.points = known, told, []
        self.seeds, self.at_once, self.rng = seeds, at_once, random.Random(order)
        self.searcher = SeedAveragedSearcher(
            Optuna(num_samples=SAMPLES).searcher(SPACE, "m", "max"),
            SAMPLES,
            self.trials_of,
            lambda trial: self.known.get(trial.hash),
            lambda trial: {"hash": trial.hash},
            [*told],
            self.record,
            "m",
            "max",
        )

    def record(self, told):
        self.told = [*told]

    def trials_of(self, point):
        self.points.append(point)
        hashes = [f"{sorted(point.items())} {seed}" for seed in range(self.seeds)]
        return [PlannedTrial(point, seed, hash, None) for seed, hash in enumerate(hashes)]

    def run(self, ends=None):
        """Run until so many trials have ended (None: all)."""
        live, number, finished = {}, 0, False
        while ends is None or ends > 0:
            while len(live) < self.at_once and not finished:
                config = self.searcher.suggest(f"t{number}")
                if config is None:
                    break
                if config == "FINISHED":
                    finished = True
                    break
                live[f"t{number}"] = config["hash"]
                number += 1
            if not live:
                break
            trial = self.rng.choice(sorted(live))
            hash = live.pop(trial)
            assert hash not in self.known, "a trial ran twice"
            self.known[hash] = random.Random(hash).random()
            self.searcher.on_trial_complete(trial, {"m": self.known[hash]})
            ends = ends - 1 if ends is not None else None
        return self.points


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("ends", [1, 13, 25])
def test_a_search_that_is_started_again_gets_the_same_points(seeds, ends):
    first = Search(seeds, {}, [])
    first.run(ends)
    asked = first.points[: len(first.told)]
    second = Search(seeds, first.known, first.told, order=1)
    assert second.run()[: len(asked)] == asked
    assert len(second.points) == SAMPLES
    assert len(second.known) == SAMPLES * seeds
    third = Search(seeds, {**second.known}, second.told, order=2)
    assert third.run() == second.points
    assert third.known == second.known


def test_a_trial_that_ends_while_it_is_paused_counts_with_its_last_value():
    search = Search(1, {}, [])
    told = []
    search.searcher._inner.on_trial_complete = lambda *of, **how: told.append((of, how))
    search.searcher.suggest("t0")
    search.searcher.on_trial_result("t0", {"m": 0.25})
    search.searcher.on_trial_complete("t0")
    search.searcher.suggest("t1")
    assert told == [(("point-0", {"m": 0.25}), {})]
