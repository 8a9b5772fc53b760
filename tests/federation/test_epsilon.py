"""Epsilon against the accountants of dp-accounting, called by hand, and published values."""

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from rayfl.federation.privacy import epsilons


def test_poisson_sampling_is_what_the_library_says():
    found = epsilons(1.1, "bernoulli", 0.1, 10, 100, 30, 0.01)
    assert len(found) == 30
    for rounds in (1, 7, 30):
        accountant = RdpAccountant()
        accountant.compose(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.1)), rounds)
        assert found[rounds - 1] == pytest.approx(accountant.get_epsilon(0.01), rel=1e-9)


@pytest.mark.slow
def test_the_published_value_of_the_moments_accountant():
    """Abadi et al. 2016, arXiv:1607.00133, section 3.2: 1.26; later bounds of the same noise are lower."""
    last = epsilons(4.0, "bernoulli", 0.01, 600, 60_000, 10_000, 1e-5)[-1]
    tight = PLDAccountant()
    tight.compose(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(4.0)), 10_000)
    assert tight.get_epsilon(1e-5) < last < 1.26
    assert last == pytest.approx(1.26, rel=0.2)


def test_without_replacement_one_client_in_anothers_place_moves_the_sum_twice_as_far():
    accountant = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    event = dp.SampledWithoutReplacementDpEvent(1000, 10, dp.GaussianDpEvent(2.0))
    accountant.compose(event, 20)
    found = epsilons(4.0, "uniform", 0.01, 10, 1000, 20, 1e-3)
    assert found[-1] == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-9)


@pytest.mark.parametrize("cohort", [10, 9])
def test_sampling_never_costs(cohort):
    """All clients in each round is the plain Gaussian mechanism; its bound holds for a part of them, too."""
    plain = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    plain.compose(dp.GaussianDpEvent(0.5), 5)
    found = epsilons(1.0, "uniform", cohort / 10, cohort, 10, 5, 0.1)
    assert found[-1] <= plain.get_epsilon(0.1) * (1 + 1e-9)
    if cohort == 10:
        assert found[-1] == pytest.approx(plain.get_epsilon(0.1), rel=1e-9)


@pytest.mark.slow
def test_epsilon_grows_with_the_rounds_and_falls_with_the_noise():
    for sampling in ("bernoulli", "uniform"):
        little, much = (epsilons(z, sampling, 0.1, 10, 100, 20, 0.01) for z in (1.0, 2.0))
        assert list(little) == sorted(set(little))
        assert all(a > b for a, b in zip(little, much, strict=True))
    assert epsilons(0.0, "uniform", 0.1, 10, 100, 20, 0.01) == ()
