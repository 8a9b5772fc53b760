"""Samplers against their probabilities: fixed seeds, and bounds of five standard deviations."""

import numpy as np
import pytest
from conftest import rarely

from rayfl.federation.sampling import cohort_size, sample_cohort, survivors
from rayfl.training.batches import client_steps

SIZES = np.array([1, 2, 3, 4, 10])
ROUNDS = 4000


def frequencies(sampling, participation, sizes=SIZES):
    """Share of the rounds in which each client is in the cohort, and the sizes of the cohorts."""
    counts, cohorts = np.zeros(len(sizes)), []
    for round in range(1, ROUNDS + 1):
        cohort = sample_cohort(sampling, participation, sizes, 0, round)
        assert cohort == sorted(set(cohort))
        counts[cohort] += 1
        cohorts.append(len(cohort))
    return counts / ROUNDS, np.array(cohorts)


def near(measured, probability, trials=ROUNDS):
    """Within five standard deviations of a frequency of independent trials."""
    p = np.asarray(probability)
    return np.all(np.abs(measured - p) <= 5 * np.sqrt(p * (1 - p) / trials) + 1e-12)


def test_uniform_cohorts_never_change():
    """Every stored result depends on them."""
    sizes = np.ones(20)
    cohorts = [sample_cohort("uniform", 0.25, sizes, 0, round) for round in (1, 2)]
    assert cohorts == [[7, 8, 10, 13, 19], [1, 5, 14, 16, 18]]


def test_uniform_takes_every_client_equally_often():
    frequency, cohorts = frequencies("uniform", 0.4)
    assert near(frequency, np.full(5, 0.4))
    assert set(cohorts) == {2}


def test_bernoulli_takes_every_client_by_itself():
    """Sample a tenth and a quarter of a tenth of 20 clients: S is not rounded, cohorts vary in size."""
    n, p = 20, 0.125
    frequency, cohorts = frequencies("bernoulli", p, np.arange(1, n + 1))
    not_empty = 1 - (1 - p) ** n
    assert near(frequency, np.full(n, p / not_empty))
    assert cohorts.min() == 1
    # A binomial distribution without its zero.
    mean = n * p / not_empty
    variance = (n * p * (1 - p) + (n * p) ** 2) / not_empty - mean**2
    assert abs(cohorts.mean() - mean) < 5 * np.sqrt(variance / ROUNDS)
    assert abs(cohorts.var() / variance - 1) < 0.15


def test_an_empty_bernoulli_cohort_is_drawn_again():
    frequency, cohorts = frequencies("bernoulli", 0.05)
    assert cohorts.min() == 1  # nearly eight of ten draws are empty
    assert near(frequency, np.full(5, 0.05 / (1 - 0.95**5)))


@pytest.mark.parametrize("participation", [0.4, *rarely([0.2, 1.0])])
def test_weighted_draws_are_proportional_to_the_samples_of_those_left(participation):
    p = SIZES / SIZES.sum()
    second = [sum(p[j] * p[i] / (1 - p[j]) for j in range(5) if j != i) for i in range(5)]
    expected = {0.2: p, 0.4: p + second, 1.0: np.ones(5)}[participation]
    frequency, cohorts = frequencies("weighted", participation)
    assert near(frequency, expected)
    assert set(cohorts) == {cohort_size(participation, 5)}


def test_there_is_always_a_client_in_a_cohort():
    assert [cohort_size(p, 10) for p in (0.001, 0.24, 0.26, 1.0)] == [1, 2, 3, 10]
    assert all(cohort_size(s / n, n) == s for n in range(1, 120) for s in range(1, n + 1))


def test_each_client_is_lost_with_the_probability_of_dropout():
    lost, cohort = np.zeros(8), [2, 3, 5, 7, 11, 13, 17, 19]
    for round in range(ROUNDS):
        back = survivors(cohort, 0.3, 0, round)
        assert back == sorted(set(back) & set(cohort))
        lost += ~np.isin(cohort, back)
    # All eight are lost, and one of them is kept, in one of 15,000 rounds: far below the bound.
    assert near(lost / ROUNDS, np.full(8, 0.3))


def test_at_least_one_client_comes_back_and_it_may_be_any():
    kept = [survivors([4, 8], 0.999, 0, round) for round in range(500)]
    assert all(len(back) == 1 for back in kept)
    assert near(np.mean([back == [4] for back in kept]), 0.5, trials=500)


def test_who_is_lost_depends_on_client_and_round_only():
    many, few = list(range(8)), [1, 2, 6]
    fates = set()
    for round in range(50):
        expected = [client for client in survivors(many, 0.5, 1, round) if client in few]
        back = survivors(few, 0.5, 1, round)
        assert back == expected or (len(back) == 1 and not expected)
        fates.add(tuple(back))
    assert len(fates) == 7  # any of them, but never none
    assert survivors([3, 1], 0.0, 1, 1) == [3, 1]


def test_a_straggler_stops_after_any_of_its_steps():
    steps = [
        client_steps(6, 0.5, 0, round, client)
        for round in range(ROUNDS // 4)
        for client in range(4)
    ]
    counts = np.bincount(steps, minlength=7)
    assert counts[0] == 0
    assert len(counts) == 7
    assert near(counts[1:6] / ROUNDS, np.full(5, 0.5 / 6))
    assert near(counts[6] / ROUNDS, 0.5 + 0.5 / 6)


def test_without_stragglers_all_steps_are_taken_and_one_step_stays_one():
    assert {client_steps(9, 0.0, 0, round, 0) for round in range(100)} == {9}
    assert {client_steps(1, 1.0, 0, round, 0) for round in range(100)} == {1}
