from typing import get_args

import numpy as np
import pytest

from rayfl.seeds import Purpose, generator, integer

PURPOSES = get_args(Purpose)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ((0, "partition"), [856092, 909145, 494060]),
        ((0, "cohort", 1), [645070, 775892, 435575]),
        ((0, "batches", 1, 0), [258845, 126272, 999135]),
        ((0, "batches", 1, 1), [223483, 371060, 115144]),
        ((0, "augment", 1, 1), [446053, 395652, 753383]),
        ((1, "model", 2, 3), [649451, 165654, 732100]),
        ((1099511627776, "init", 0, 0), [899277, 132317, 925092]),
        ((0, "dropout", 1, 1), [719958, 62989, 445917]),
        ((0, "stragglers", 1, 1), [302662, 92072, 469916]),
        ((0, "long_tail"), [535940, 984790, 110661]),
        ((0, "feature_shift"), [507, 756277, 441319]),
        ((0, "label_noise"), [224088, 954415, 74495]),
        ((0, "method", 1, 1), [197874, 891481, 772331]),
        ((0, "server_method", 1), [372940, 805023, 207562]),
        ((0, "validation", 0, 1), [371917, 319223, 248226]),
    ],
)
def test_streams_never_change(stream, expected):
    """Every stored result depends on them: a failure here is a change of all experiments."""
    assert generator(*stream).integers(10**6, size=3).tolist() == expected


def test_streams_are_different_for_every_seed_purpose_round_and_client():
    streams = [
        (seed, purpose, round, client)
        for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1)
        for purpose in PURPOSES
        for round in range(4)
        for client in range(4)
    ]
    first = {generator(*stream).integers(2**63, size=2).tobytes() for stream in streams}
    assert len(first) == len(streams)


def test_streams_are_not_those_of_numpy():
    ours = {generator(seed, purpose).random() for seed in range(50) for purpose in PURPOSES}
    assert not ours & {np.random.default_rng(seed).random() for seed in range(50)}


def test_streams_do_not_depend_on_what_was_drawn_before():
    streams = [(7, "batches", round, client) for round in range(3) for client in range(3)]
    forwards = [generator(*stream).random(5).tolist() for stream in streams]
    np.random.default_rng(0).random(100)
    backwards = [generator(*stream).random(5).tolist() for stream in reversed(streams)]
    assert forwards == backwards[::-1]


def test_streams_are_uncorrelated():
    """Neighbouring rounds and clients: correlations of 4,096 draws stay within 5 / sqrt(4096)."""
    streams = [(0, "batches", round, client) for round in range(8) for client in range(8)]
    draws = np.stack([generator(*stream).standard_normal(4096) for stream in streams])
    correlations = np.corrcoef(draws) - np.eye(len(streams))
    assert np.abs(correlations).max() < 5 / np.sqrt(4096)


def test_integers_fit_torch():
    seeds = {integer(0, "init", round) for round in range(1000)}
    assert len(seeds) == 1000
    assert 0 <= min(seeds) < max(seeds) < 2**63


def test_an_unknown_purpose_is_an_error():
    with pytest.raises(KeyError):
        generator(0, "nothing")  # type: ignore[arg-type]
