"""Sampling of one's own: checked before the start and in each round, and part of what a result depends on."""

import own_parts
import pytest

import rayfl
from rayfl import load_config
from rayfl.errors import ConfigError, RunError
from rayfl.prepare import prepare


def sampled(small, function):
    return load_config(
        small | {"federation": small["federation"] | {"sampling": f"own_parts:{function}"}}
    )


def test_it_decides_on_the_cohorts(small):
    config = sampled(small, "round_robin")
    federation = prepare(config).federation
    assert [federation.cohort(r) for r in (1, 2)] == [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]
    assert rayfl.run(config, local=True).history["cohort/size"].tolist() == [5, 5, 5]


def test_it_draws_from_the_stream_of_the_round(small):
    """What draws as `uniform` does has its bits, and cannot change the clients' sizes."""
    own, uniform = sampled(small, "drawn"), load_config(small)
    assert own.hash != uniform.hash
    assert "own_parts" in own.code()
    assert rayfl.run(own, local=True).model_sha256 == rayfl.run(uniform, local=True).model_sha256


@pytest.mark.parametrize(
    ("function", "words"),
    {
        "none": r"no list of client ids: \[\] in round 1",
        "twice": r"a client twice: \[1, 1\]",
        "beyond": r"ids beyond 0 to 9: \[10\]",
        "halves": "no list of client ids",
        "raising": "fails .TypeError",
        "number": "is no function",
        "forgets_the_generator": "another cohort when it is called again",
    }.items(),
)
def test_a_wrong_one_is_refused_before_the_start(function, words, small):
    own_parts.CALLS.clear()
    with pytest.raises(
        ConfigError, match=f"federation.sampling = 'own_parts:{function}': .*{words}"
    ):
        prepare(sampled(small, function))


def test_what_goes_wrong_later_ends_the_run(small):
    with pytest.raises(
        RunError, match=r"'own_parts:ends_early': gives no list .* in round 2; it must"
    ):
        rayfl.run(sampled(small, "ends_early"), local=True)


def test_privacy_refuses_it(small):
    with pytest.raises(
        ConfigError, match=r"federation\.sampling = 'own_parts:drawn': must be 'uniform' or"
    ):
        sampled(small | {"privacy": {"clip": 1.0, "noise": 1.0}}, "drawn")
