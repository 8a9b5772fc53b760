"""Every recorded training of the methods' authors, by rayfl's server, engine, local loop and oracles.

The bound is rounding's where the authors' code divides by no epsilon, or by one of 1e-12; their SAM of
fedwmsam.npz divides by a norm + 1e-7.
"""

import dataclasses
import itertools

import pytest
from conftest import each
from numpy_reference import PAPER
from recordings import Way, replay, traces

TRACES = traces()
WITH_EPSILON = {"FedSAM", "MoFedSAM", "FedGamma", "FedSpeed", "FedSMOO"}
ALONE, STACKED = Way("PerClientGradient", 1), Way("VmapGradient", 4)
CONVOLUTIONAL = (ALONE, STACKED)
DENSE = (*CONVOLUTIONAL, Way("BatchedMLP", 1), Way("BatchedMLP", 4))
CASES = {
    f"{name} {way.oracle} {way.stack}": (name, way)
    for name, trace in TRACES.items()
    for way in (DENSE if trace.x.ndim == 2 else CONVOLUTIONAL)
}
EACH_RECORDING_ONCE = {
    name: (name, DENSE[-1] if trace.x.ndim == 2 else STACKED) for name, trace in TRACES.items()
}
WMSAM = "ragged/FedWMSAM"
WMSAM_OPTIONS = [n for n in TRACES[WMSAM].options if n != "server_lr"]


def bound(name: str) -> float:
    return 2e-7 if name.partition("/")[2] in WITH_EPSILON else 1e-11


def test_there_are_26_recordings():
    """Two of them with FedWMSAM's alpha."""
    assert len(TRACES) == 26
    assert [n for n, t in TRACES.items() if t.alpha is not None] == ["equal/FedWMSAM", WMSAM]


@each(case=EACH_RECORDING_ONCE)
def test_the_first_rounds_equal_the_recording(case):
    check(*case, rounds=3)


@pytest.mark.slow
@each(case=CASES)
def test_every_round_equals_the_recording_whoever_computes_it(case):
    check(*case)


def check(name: str, way: Way, rounds: int | None = None) -> None:
    trace, apart, alpha = TRACES[name], [], []
    for server, difference in itertools.islice(replay(trace, way), rounds):
        apart.append(difference)
        if trace.alpha is not None:
            alpha.append(server.state["alpha"].item())
    assert max(apart) < bound(name), apart
    if trace.alpha is not None:
        assert alpha == pytest.approx(trace.alpha[:rounds], rel=0, abs=1e-11)


@pytest.mark.parametrize("option", WMSAM_OPTIONS)
def test_each_of_the_released_options_shows(option):
    """With another value in its place, the parameters are others."""
    other = (PAPER | {"alpha": 0.1, "rho": 0.1})[option]
    rounds = replay(TRACES[WMSAM], STACKED, **{option: other})
    assert any(difference > 1e-4 for _, difference in rounds)


def test_a_clip_acts_where_it_was_recorded():
    trace = TRACES["F2 FedNSAM, clip acts"]
    free = dataclasses.replace(trace, local=trace.local | {"clip_norm": None})
    *_, (_, difference) = replay(free, STACKED)
    assert difference > 0.1
