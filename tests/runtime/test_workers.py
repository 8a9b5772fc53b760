"""The places of a pool: actors that die while they start, and those that are replaced."""

import os

import pytest
import ray
from ray.exceptions import RayActorError

from rayfl.errors import RunError
from rayfl.runtime import workers
from rayfl.runtime.workers import Workers

pytestmark = pytest.mark.slow  # a process for each actor


class Described:
    """An actor that does nothing but start, or die of it."""

    def __init__(self, dies: bool):
        self.dies = dies

    def describe(self):
        if self.dies:
            os._exit(1)
        return {"node_id": "here", "kernels": ""}


@pytest.fixture
def started(ray_session):
    """A place whose actors die, or not, in this order; `step` waits for what the newest says."""
    actors = []

    def begin(*deaths):
        dies, remote = iter(deaths), ray.remote(num_cpus=0)(Described)

        def spawn(index):
            actors.append(remote.remote(next(dies)))
            return actors[-1]

        place = Workers(1, spawn, lambda there: False, None)

        def step():
            ((ref, worker),) = place.starting().items()
            ray.wait([ref])
            place.started(worker, ref)
            return worker

        return place, step

    begin.actors = actors
    yield begin
    for actor in actors:
        ray.kill(actor)


def test_deaths_at_the_start_are_counted_from_the_last_actor_that_was_ready(started, monkeypatch):
    monkeypatch.setattr(workers, "START_RETRIES", 1)
    place, step = started(True, False, True, False, True, True)
    for _ in range(2):
        assert step().starting is not None
        worker = step()
        assert worker.starting is None
        place.replace(worker)
    step()
    with pytest.raises(RunError, match="a client actor could not start"):
        step()


def test_an_actor_that_was_only_out_of_reach_does_not_come_back(started):
    place, step = started(False, False)
    place.replace(step())
    step()
    first, second = started.actors
    assert place.actors == [second]
    with pytest.raises(RayActorError):
        ray.get(first.describe.remote())
    assert ray.get(second.describe.remote())
