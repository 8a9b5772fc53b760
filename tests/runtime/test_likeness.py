"""Client actors that compute on unlike processors."""

from pathlib import Path

import pytest
import ray
from sweeps import runs

from rayfl.config.schema import load_config
from rayfl.federation.likeness import unlike
from rayfl.inputs import Inputs
from rayfl.prepare import prepare
from rayfl.runtime.actors import stored
from rayfl.runtime.client import ClientActor
from rayfl.runtime.pool import ActorPool
from rayfl.tracking.store import TrackingStore
from tuning.config import load_sweep
from tuning.plan import checked, trials
from tuning.tracking import SweepTracker


@pytest.mark.slow
def test_actors_with_other_vector_instructions_are_told_apart(ray_session, small):
    _, client = prepare(load_config(small)).specs()
    spec, capabilities = stored(client), ("default", "default", "avx2")

    def spawn(index):
        env = {"env_vars": {"ATEN_CPU_CAPABILITY": capabilities[index]}}
        actor = ray.remote(ClientActor).options(num_cpus=0, runtime_env=env)
        return actor.remote(1, 0, *spec)

    pool = ActorPool(3, spawn)
    actors = pool.describe()
    for actor in pool.actors:
        ray.kill(actor)
    warning = unlike(actors)
    assert "(1 with AVX2, 2 with DEFAULT)" in warning
    assert "ATEN_CPU_CAPABILITY=avx2 where Ray is started" in warning
    assert unlike([a for a in actors if a["processor"] == "DEFAULT"]) == ""


def test_a_sweep_warns_once_and_each_trials_run_has_the_processors(sweep_file, store_here, caplog):
    sweep, inputs = load_sweep(sweep_file(seeds=[0, 1])), Inputs()
    store = TrackingStore(None, "rayfl")
    tracker = SweepTracker(store, sweep)
    alike = {"device": "cpu", "engine": "BatchedMLP", "precision": "float32"}
    actors = [alike | {"processor": name} for name in ("AVX2", "AVX512")]
    for planned in trials(sweep, sweep.search.points(sweep.space)):
        trial = checked(sweep, planned, inputs)
        tracker.start(trial, *inputs.of(trial.config))
        tracker.record(trial.hash, {"records": [], "actors": actors})
        tracker.end(trial.hash, "finished", "", "", {})
    tracker.finish("FINISHED")
    assert caplog.messages == [unlike(actors)]
    found = runs(Path())
    assert len(found) == 4
    assert {run.data.tags["rayfl.processor"] for run in found} == {"AVX2, AVX512"}
