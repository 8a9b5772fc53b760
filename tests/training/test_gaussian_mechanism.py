"""Clipped uploads and their noise, as arithmetic on vectors."""

from fractions import Fraction

import pytest
import torch

from rayfl.training.privacy import GaussianMechanism


def mechanism(clip=1.0, noise=0.0, at="server", cohort=4.0):
    return GaussianMechanism(seed=3, clip=clip, noise=noise, at=at, cohort=cohort)


def uploads(*scales, entries=700):
    rng = torch.Generator().manual_seed(0)
    rows = torch.tensor(scales).unsqueeze(-1)
    shapes = {"delta": entries, "c_change": entries, "count": 1}
    return {name: rows * torch.randn(len(scales), n, generator=rng) for name, n in shapes.items()}


def exact_square(vectors, row):
    """Squared norm of all that a client sends, without rounding."""
    return sum(Fraction(x) ** 2 for v in vectors.values() for x in v[row].tolist())


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1.7, 30.0])
def test_the_norm_of_all_vectors_together_is_bounded_exactly(clip):
    given = uploads(1e-6, 0.01, 1.0, 1e6, 1e15)
    clipped, outside = mechanism(clip).clipped(given)
    for row in range(5):
        before, after = exact_square(given, row), exact_square(clipped, row)
        assert after <= Fraction(clip) ** 2
        assert outside[row] == (before > Fraction(clip) ** 2)
        if outside[row]:  # no shorter than rounding makes it, and in the same direction
            assert after > (Fraction(clip) * (1 - Fraction(1, 2**20))) ** 2
            cosine = torch.cosine_similarity(given["delta"][row], clipped["delta"][row], dim=0)
            assert cosine == pytest.approx(1)
        else:
            assert all(clipped[name][row].equal(v[row]) for name, v in given.items())


def test_a_client_of_a_stack_is_clipped_as_alone():
    given = uploads(0.01, 5.0, 2.0)
    together, _ = mechanism().clipped(given)
    for row in range(3):
        alone, _ = mechanism().clipped({name: v[row : row + 1] for name, v in given.items()})
        assert all(alone[name][0].equal(v[row]) for name, v in together.items())


def test_what_is_not_finite_stays_so():
    for value in (torch.inf, torch.nan):
        clipped, _ = mechanism().clipped({"delta": torch.tensor([[1.0, value]])})
        assert not clipped["delta"].isfinite().all()


ENTRIES, ROUNDS, COHORT = 1000, 100, 4


def noise_of(at):
    """All noise in the sums of 100 rounds of four clients, of two vectors."""
    private = mechanism(clip=0.5, noise=3.0, at=at)
    drawn = []
    for round in range(1, ROUNDS + 1):
        rows = {name: torch.zeros(COHORT, ENTRIES) for name in ("delta", "v")}
        private.add_share_(rows, round, [2, 3, 5, 7])
        sums = {name: v.sum(0) for name, v in rows.items()}
        private.add_noise_(sums, round)
        drawn.append(torch.cat(list(sums.values())).double())
    return torch.stack(drawn)


@pytest.mark.parametrize("at", ["server", "clients"])
def test_the_noise_of_the_sum_is_normal_with_deviation_z_clip(at):
    from scipy import stats

    scaled = noise_of(at) / (3.0 * 0.5)
    n = scaled.numel()
    assert abs(scaled.mean()) < 4 / n**0.5
    assert abs(scaled.var() - 1) < 4 * (2 / n) ** 0.5
    assert stats.kstest(scaled.flatten().numpy(), "norm").pvalue > 1e-3
    # Independent over rounds and over vectors.
    assert abs((scaled[1:] * scaled[:-1]).mean()) < 4 / n**0.5
    assert abs((scaled[:, :ENTRIES] * scaled[:, ENTRIES:]).mean()) < 4 / (n / 2) ** 0.5


def test_servers_and_clients_noise_are_equal_in_distribution():
    from scipy import stats

    both = [noise_of(at).flatten().numpy() for at in ("server", "clients")]
    assert stats.ks_2samp(*both).pvalue > 1e-3
    assert (both[0] != both[1]).all()


def test_a_clients_share_is_its_own_wherever_it_trains():
    private = mechanism(noise=1.0, at="clients")
    stack = {"delta": torch.zeros(3, 50)}
    private.add_share_(stack, 2, [4, 6, 9])
    alone = {"delta": torch.zeros(1, 50)}
    private.add_share_(alone, 2, [6])
    assert alone["delta"][0].equal(stack["delta"][1])
    assert len({row.numpy().tobytes() for row in stack["delta"]}) == 3
