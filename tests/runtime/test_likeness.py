"""Client actors that compute on unlike processors."""

import pytest
import ray

from rayfl.config.schema import load_config
from rayfl.federation.likeness import unlike
from rayfl.prepare import prepare
from rayfl.runtime.actors import stored
from rayfl.runtime.client import ClientActor
from rayfl.runtime.pool import ActorPool


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
