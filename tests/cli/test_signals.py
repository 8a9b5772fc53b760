import signal
import sys
import time

import pytest

from rayfl.cli.signals import Interrupts


@pytest.fixture(autouse=True)
def handlers():
    """An interrupt leaves its handlers for the rest of the process; tests must not."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before, hook = [signal.getsignal(number) for number in numbers], sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def state() -> tuple[object, ...]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_the_second_does_not(number):
    said, after = [], []

    def run():
        with Interrupts(said.append):
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)  # while the run is being ended
                after.append("done")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert after == ["done"]
    assert said == ["stopping", "still stopping; once more to quit at once"]


def test_a_signal_taken_by_others_is_taken_back():
    with Interrupts(lambda text: None) as interrupts:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(15))
        interrupts.take()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_an_interrupt_in_a_destructor_is_not_lost():
    class Freed:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def run():
        with Interrupts(said.append):
            Freed()
            time.sleep(10_000)  # the test would run out of time

    said = []
    with pytest.raises(KeyboardInterrupt):
        run()
    assert said == ["stopping"]


@pytest.mark.parametrize("error", [None, ValueError])
def test_all_is_as_before_if_nothing_was_interrupted(error):
    before = state()
    try:
        with Interrupts(lambda text: None):
            assert state() != before
            if error:
                raise error
    except ValueError:
        pass
    assert state() == before
